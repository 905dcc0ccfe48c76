"""valkey-glide: one multiplexed connection in Rust; GET and the very decode our cache does."""

from __future__ import annotations

from glide import GlideClient, GlideClientConfiguration, NodeAddress
from reading import Product, Reader, body, decode, place


class Subject(Reader):
    async def wire(self) -> None:
        # Its deadline of 250 ms is for a server that is far less busy than one in a benchmark.
        client = await GlideClient.create(
            GlideClientConfiguration(
                [NodeAddress(*place(self.settings["valkey"]))], request_timeout=10_000
            )
        )
        self.opened.push_async_callback(client.close)
        for key in self.ids:
            await client.set(f"glide:{key}", body(key))

        async def get(key: str) -> Product:
            return decode(await client.get(f"glide:{key}"))

        self.reads["redis"] = get
