"""Joins a guest's connection, which qemu hands over as standard input and output, to a port of this machine.

qemu starts one for each connection to an address that it is told to forward, and lets its guest reach nothing else.
"""

import os
import socket
import sys
import threading


def main() -> None:
    upstream = socket.create_connection(("127.0.0.1", int(sys.argv[1])))

    def up() -> None:
        while data := os.read(0, 65536):
            upstream.sendall(data)
        upstream.shutdown(socket.SHUT_WR)

    threading.Thread(target=up, daemon=True).start()
    while data := upstream.recv(65536):
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
