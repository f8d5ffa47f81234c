"""What gunicorn loads; `llmis web` starts it."""

from app.factory import create_app

app = create_app()
