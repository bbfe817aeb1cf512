"""What the server lets through, before gradio sees it.

Pictures travel inside the page, so there is no file that anybody needs to fetch: the routes that hand out files are
closed, and with them every way to an upload of somebody else. The page itself may load nothing from elsewhere.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HOSTS = {"127.0.0.1", "localhost"}
CLOSED = ("/file=", "/file/", "/stream/", "/proxy=", "/component_server")
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware: 404 for files, 403 for other host names (DNS rebinding), strict headers for everything."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif host_of(scope) not in HOSTS:
            await refuse(send, 403)
        elif any(part in scope["path"] for part in CLOSED):
            await refuse(send, 404)
        else:
            await self.app(scope, receive, lambda message: send(with_headers(message)))


def host_of(scope: Message) -> str:
    """The host name that a browser was given, without the port."""
    value = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return value.rpartition(":")[0] if ":" in value else value


def with_headers(message: Message) -> Message:
    """The start of a response with `HEADERS` in place of its own; anything else as it is."""
    if message["type"] != "http.response.start":
        return message
    ours = {name for name, _ in HEADERS}
    return {**message, "headers": [h for h in message["headers"] if h[0].lower() not in ours] + HEADERS}


async def refuse(send: Send, status: int) -> None:
    """An empty response."""
    await send({"type": "http.response.start", "status": status, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b""})
