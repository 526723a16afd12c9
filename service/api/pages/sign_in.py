"""GET and POST /sign-in, POST /sign-out: a token for a session, and its end."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from syncnorm.service.api.auth import UnauthorizedError, require
from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.pages.rendering import page, require_html, return_path
from syncnorm.service.api.pages.session import Parts, sessions, set_cookie
from syncnorm.service.origins import SIGN_IN, SIGN_OUT

router = APIRouter(include_in_schema=False, route_class=Route)
_LONGEST_FORM = 4096


@router.get(SIGN_IN)
def sign_in_form(request: Request, parts: Parts) -> Response:
    require_html(request, "/v1/jobs with the header Authorization")
    if not parts.authenticator.is_on:
        return RedirectResponse("/", 303)
    return page("sign_in.html", request, said="", back="/", hops=False)


@router.post(SIGN_IN)
async def sign_in(request: Request, parts: Parts) -> Response:
    """Raises: ApiError 401 for a token that is not valid, 403 for one that may not read."""
    form = await _form(request)
    if not parts.authenticator.is_on:
        return RedirectResponse("/", 303)
    try:
        who, value = await run_in_threadpool(sessions(parts).begin, form.get("token", "").strip())
    except UnauthorizedError as error:
        request.state.denied, request.state.back = error, form.get("back", "/")
        raise
    require(who, "read")
    answer = RedirectResponse(return_path(form.get("back", "/")), 303)
    set_cookie(request, answer, value)
    return answer


@router.post(SIGN_OUT)
async def sign_out(request: Request) -> Response:
    answer = RedirectResponse(SIGN_IN, 303)
    set_cookie(request, answer, "")
    return answer


async def _form(request: Request) -> dict[str, str]:
    """The first value of each field. Raises: ApiError 413, 422."""
    body = await request.body()
    if len(body) > _LONGEST_FORM:
        raise ApiError(413, "request_entity_too_large", f"The form must not exceed {_LONGEST_FORM} bytes.")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=8, errors="strict")
    except ValueError as error:
        raise ApiError(422, "invalid_request", "The form can't be read. Open this page again, and sign in.") from error
    return {name: values[0] for name, values in fields.items()}
