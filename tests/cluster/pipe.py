"""One end of a pipe between two networks: `pipe.py SOCKET from|to ADDRESS PORT`.

A socket in the file system is seen from every network namespace, so what connects to the address at
the end called `from` comes out at the other one, and nothing else passes.
"""

import asyncio
import sys


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main(socket: str, end: str, address: str, port: int) -> None:
    """Passes every connection on."""

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if end == "from":
                other = await asyncio.open_unix_connection(socket)
            else:
                other = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, other[1]), _copy(other[0], writer))

    if end == "from":
        server = await asyncio.start_server(joined, address, port)
    else:
        server = await asyncio.start_unix_server(joined, socket)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
