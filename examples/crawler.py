"""A crawl of many pages: each worker opens one HTTP session for its life, and a bar shows how far it is.

`python examples/crawler.py 500` takes 500 pages instead of 10,000. Needs aiohttp and tqdm. The server is a local one.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import aiohttp
from aiohttp import web

from polyloop import Pool, Process, Queue, current_worker

PAGES = 10_000
WORKERS = 2
LINKS = 20


class Links(HTMLParser):
    """Counts the links of a page, which is what costs time here."""

    count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += tag == "a"


@asynccontextmanager
async def lifespan() -> AsyncIterator[aiohttp.ClientSession]:
    """Once in each worker: a session, whose connections all tasks of the worker share."""
    async with aiohttp.ClientSession() as session:
        yield session


async def count_links(url: str) -> tuple[int, int]:
    worker = current_worker()
    async with worker.state.get(url) as response:
        page = Links()
        page.feed(await response.text())
    return worker.index, page.count


async def serve(ports: Queue[int]) -> None:
    """A site in a process of its own, until that is terminated."""

    async def page(request: web.Request) -> web.Response:
        links = "".join(f'<li><a href="/{n}">page {n}</a></li>' for n in range(LINKS))
        return web.Response(text=f"<h1>{request.path}</h1><ul>{links}</ul>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{page}", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await ports.aput(runner.addresses[0][1])
    await asyncio.Event().wait()


async def crawl(base: str, pages: int) -> None:
    urls = [f"{base}/{n}" for n in range(pages)]
    started_s = time.perf_counter()
    # A page that is being fetched when its worker dies is fetched again.
    async with Pool(WORKERS, lifespan=lifespan, retries=1) as pool:
        found = await pool.map(count_links, urls).progress(desc="pages")
        await pool.aclose()  # which closes the sessions
    elapsed_s = time.perf_counter() - started_s
    shares = Counter(index for index, _ in found)
    print(f"{len(found):,} pages, {sum(links for _, links in found):,} links")
    print(f"by {len(shares)} workers with a session each: {sorted(shares.values())} pages")
    print(f"in {elapsed_s:.1f} s, {pages / elapsed_s:,.0f} pages/s")


async def main(pages: int) -> None:
    ports: Queue[int] = Queue()
    site = Process(target=serve, args=(ports,))
    site.start()
    try:
        await crawl(f"http://127.0.0.1:{await ports.aget()}", pages)
    finally:
        site.terminate()
        await site.join()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else PAGES))
