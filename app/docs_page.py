"""`GET /docs`: the API's documentation, to read and to try.

The page shows `/openapi.json` with Swagger UI, whose files a package carries: nothing is asked
of another host.
"""

from importlib.resources import files

from flask import Blueprint, Flask, Response, render_template, send_from_directory

blueprint = Blueprint("docs_page", __name__)
_ASSETS = files("flask_swagger_ui") / "dist"


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/docs")
def docs() -> str:
    return render_template("docs.html")


@blueprint.get("/docs/<any('swagger-ui.css', 'swagger-ui-bundle.js'):name>")
def asset(name: str) -> Response:
    return send_from_directory(str(_ASSETS), name)
