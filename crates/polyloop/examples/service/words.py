"""What the service has Python do."""

import asyncio
from collections import Counter


async def count(text: str) -> dict[str, int]:
    await asyncio.sleep(0.01)  # as if a model, or a database, were asked
    return dict(Counter(text.lower().split()))
