"""What gunicorn loads: `gunicorn -c python:app.gunicorn_conf app.wsgi:app`."""

from app.factory import create_app

app = create_app()
