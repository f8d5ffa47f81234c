"""`GET /`: the chat page."""

from flask import Blueprint, Flask, render_template

from shared.version import VERSION

blueprint = Blueprint("chat_page", __name__)


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/")
def index() -> str:
    return render_template("chat.html", version=VERSION)
