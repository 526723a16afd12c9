"""/docs and /redoc: the API in a browser. All files come from this installation, none from the internet."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ASSETS = "/docs/assets"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_ICON = f"{_ASSETS}/favicon.png"

router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Serve Swagger UI and ReDoc from the files of the package fastapi-offline."""
    app.mount(_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))
    app.include_router(router)


@router.get("/docs")
def docs() -> HTMLResponse:
    """Swagger UI. A token typed in under Authorize is kept for this tab only."""
    return _page(
        get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="syncnorm API",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=_ICON,
            swagger_ui_parameters={"displayRequestDuration": True},
        )
    )


@router.get("/redoc")
def redoc() -> HTMLResponse:
    return _page(
        get_redoc_html(
            openapi_url="/openapi.json",
            title="syncnorm API",
            redoc_js_url=f"{_ASSETS}/redoc.standalone.js",
            redoc_favicon_url=_ICON,
            with_google_fonts=False,
        )
    )


def _page(page: HTMLResponse) -> HTMLResponse:
    """Adds a Content-Security-Policy that allows the page its own scripts and this service only."""
    scripts = [_digest(found[1]) for found in _INLINE.finditer(bytes(page.body).decode())]
    page.headers["Content-Security-Policy"] = "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src 'self'", *scripts]),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "worker-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )
    return page


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
