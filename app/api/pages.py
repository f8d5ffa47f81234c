"""`GET /`: the chat page. `GET /docs`: the API's documentation, to read and to try.
`GET /openapi.json`: the document behind it.

Swagger UI's files come from a Python package: the browser loads nothing from another host.
"""

from importlib.resources import files

import flask
import msgspec
from flask import Blueprint, Flask, Response, current_app, render_template, request

from app.openapi import document
from app.openapi.documented import JSON
from shared.version import VERSION

blueprint = Blueprint("pages", __name__)
_ASSETS = files("flask_swagger_ui") / "dist"
_DOCUMENT = "llmis_openapi"


def register(app: Flask) -> None:
    """After all routes that the document is to list."""
    app.extensions[_DOCUMENT] = msgspec.json.encode(document.build(app))
    app.register_blueprint(blueprint)


@blueprint.get("/")
def show_chat() -> str:
    return render_template("chat.html", version=VERSION)


@blueprint.get("/docs")
def show_docs() -> str:
    return render_template("docs.html")


@blueprint.get("/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>")
def show_docs_asset(name: str) -> Response:
    return flask.send_from_directory(str(_ASSETS), name)


@blueprint.get("/openapi.json")
def show_openapi() -> Response:
    response = Response(current_app.extensions[_DOCUMENT], content_type=JSON)
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response
