"""An answer that is sent piece by piece, and ends what makes the pieces when its client is gone.

Starlette's own cancels by a scope that interrupts the closing of connections, too, and the service
behind would go on writing. Here the work is cancelled once, and what it opened is then closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class PiecewiseResponse(Response):
    """Sends pieces as they come."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        close: Callable[[], Awaitable[object]],
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        """Send nothing yet.

        Args:
            pieces: Give the body.
            close: Called at the end, however it comes.
            headers: Further headers.
            media_type: Type of the body.
        """
        self.status_code, self.media_type = 200, media_type
        self._pieces, self._close = pieces, close
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(client_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            gone.cancel()
            done = await asyncio.gather(sending, gone, return_exceptions=True)
            await self._close()
        if isinstance(done[0], Exception):
            raise done[0]

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async for piece in self._pieces:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def client_gone(receive: Receive) -> None:
    """Return when the client of a request that was read is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
