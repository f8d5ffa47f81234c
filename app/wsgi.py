"""The application that gunicorn loads; `llmis web` starts gunicorn."""

from app.factory import create_app

app = create_app()
