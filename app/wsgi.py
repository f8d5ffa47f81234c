"""What gunicorn loads; `llmis web` starts it."""

from app.factory import create_app
from app.heritage import heritage

app = create_app(heritage=heritage)
