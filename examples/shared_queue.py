"""Processes that take orders from one queue and report to another. One is killed; the others take what it left."""

import asyncio

from polyloop import Process, Queue


async def cook(orders: Queue[str | None], served: Queue[str]) -> None:
    while (dish := await orders.aget()) is not None:
        await asyncio.sleep(0.001)
        await served.aput(dish.upper())


async def main() -> None:
    orders: Queue[str | None] = Queue(maxsize=4)  # whoever orders more waits for room
    served: Queue[str] = Queue()
    cooks = [Process(target=cook, args=(orders, served)) for _ in range(3)]
    for process in cooks:
        process.start()

    for dish in ("soup", "rice"):
        await orders.aput(dish)
    print("served:", sorted([await served.aget() for _ in range(2)]))

    cooks[0].kill()  # while it waits for an order, as all of them do
    await cooks[0].join()
    for number in range(20):
        await orders.aput(f"dish {number}")
    print("served by the others:", len({await served.aget() for _ in range(20)}))

    for process in cooks[1:]:
        await orders.aput(None)
        await process.join()
    print("left over:", orders.qsize())


if __name__ == "__main__":
    asyncio.run(main())
