"""From values to HTML. Everything users wrote is escaped, and the policy of each page runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from syncnorm import __version__
from syncnorm.service.api.auth import Principal
from syncnorm.service.api.components import Components
from syncnorm.service.api.http.accept import choose
from syncnorm.service.api.http.errors import MEDIA_TYPE, ApiError, problem_details
from syncnorm.service.cli.formatting import age, duration, number
from syncnorm.service.origins import SIGN_IN, SIGN_OUT
from syncnorm.trainer.contract.failure import ADVICE
from syncnorm.trainer.contract.text import counted, visible

HTML = "text/html"
_RETURN = re.compile(r"/(jobs/[A-Za-z0-9_-]{1,64})?")
_RETRY_S = {429: 10, 503: 10}
"""Refusals that may be over soon, by status."""
_TEMPLATES = Path(__file__).with_name("templates")
_ASSETS = {name: Markup((_TEMPLATES / name).read_text()) for name in ("style.css", "refresh.js")}


def _digest(name: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(_ASSETS[name].encode()).digest()).decode()}'"


_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_digest('refresh.js')}",
        f"style-src {_digest('style.css')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)


def _shown(value: Any) -> Any:
    """Text without commands to a terminal or to the direction of writing, which would hide what it says."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _link(url: str | None) -> str:
    """A URL that leads to a web page; empty for any other."""
    return url if url and url.startswith(("http://", "https://")) else ""


def _ago(at: datetime, now: datetime) -> str:
    return f"{age(at.isoformat(), now)} ago"


def _span(start: datetime, end: datetime) -> str:
    return duration(max(0.0, (end - start).total_seconds()))


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"cut": _cut, "link": _link, "ago": _ago, "span": _span, "duration": duration, "number": number}
    made.globals |= {"assets": _ASSETS, "version": __version__, "counted": counted, "advice": ADVICE}
    return made


_ENVIRONMENT = _environment()


def page(
    name: str, request: Request, *, who: Principal | None = None, status: int = 200, refresh_s: int = 0, **values: Any
) -> HTMLResponse:
    """A template with its values. refresh_s: pause between two refreshes; 0: none."""
    parts: Components = request.app.state.context
    text = _ENVIRONMENT.get_template(name).render(
        values,
        who=who,
        is_guarded=parts.authenticator.is_on,
        mlflow_uri=parts.mlflow_uri,
        path=request.scope["path"],
        refresh_s=refresh_s,
    )
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store", "Vary": "Accept"}
    return HTMLResponse(text, status, headers)


def require_html(request: Request, instead: str) -> None:
    """instead: where the same is JSON. Raises: ApiError 406 for a client that takes no HTML."""
    accept = ", ".join(request.headers.getlist("accept"))
    if choose(accept, [HTML]) is None:
        detail = f"This address is a page for people (text/html). For JSON, ask {instead}; /openapi.json describes it."
        raise ApiError(406, "not_acceptable", detail, extra={"available": [HTML]})


def problem_page(request: Request, error: ApiError) -> HTMLResponse | None:
    """An error at the address of a page; None at other addresses, and for clients that want JSON."""
    path, accept = request.scope["path"], ", ".join(request.headers.getlist("accept"))
    if not _is_page(path) or choose(accept, [HTML, MEDIA_TYPE, "application/json"]) != HTML:
        return None
    if error.status == 401:
        denied = getattr(request.state, "denied", None)
        back = return_path(str(getattr(request.state, "back", path)))
        said = "" if denied and denied.reason == "no token" else error.detail
        return page("sign_in.html", request, status=401, said=said, back=back, hops=_hops(request))
    problem = problem_details(error, path, getattr(request.state, "request_id", ""))
    refresh_s = _RETRY_S.get(error.status, 0)
    return page("problem.html", request, status=error.status, problem=problem, refresh_s=refresh_s)


def return_path(path: str) -> str:
    """Where to go after signing in: the path of a page here, whatever was asked for."""
    return path if _RETURN.fullmatch(path) else "/"


def _is_page(path: str) -> bool:
    return path in ("/", SIGN_IN, SIGN_OUT) or path.startswith("/jobs/")


def _hops(request: Request) -> bool:
    """Whether to load the page once more: a browser that follows a link of another site leaves the cookie out.

    Over plain HTTP it doesn't say where the link was.
    """
    is_from_here = request.headers.get("sec-fetch-site") in ("none", "same-origin")
    return request.method == "GET" and not is_from_here and not request.scope["query_string"]
