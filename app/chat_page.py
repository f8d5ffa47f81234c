"""`GET /`: the chat page."""

from flask import Blueprint, Flask, Response, render_template

from shared.version import VERSION

blueprint = Blueprint("chat_page", __name__)
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/")
def index() -> Response:
    return secured(Response(render_template("chat.html", version=VERSION)))


def secured(page: Response) -> Response:
    """Let a page run and load what this service itself has, and nothing else."""
    page.headers["Content-Security-Policy"] = _CSP
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    return page
