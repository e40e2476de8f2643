"""Microsoft's SDKs for Node, unmodified, against fwupdate-hub: starts a hub for them and runs each file of checks.

They dial port 443 for REST and WebSocket and 8883 for MQTT, and no others, so the hub needs an address of its own with
both. They trust it by Node's own variable, which is read when a process starts: the hub must run before.
"""

import os
import socket
import subprocess
import sys

from harness import Hub

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
MODULES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../target/node/node_modules")
PARTS = ["service.js", "device.js", "provisioning.js"]


def may_listen():
    """Port 443 is root's on most machines."""
    try:
        socket.create_server(("127.0.0.2", 443)).close()
    except PermissionError:
        return False
    return True


def main():
    if not may_listen():
        print("not root: the SDKs for Node are left out, for they dial port 443")
        return 0
    hub = Hub(sys.argv[1], https_port=443)
    environment = dict(os.environ, NODE_PATH=MODULES, NODE_EXTRA_CA_CERTS=hub.ca, HUB_PROGRAM=hub.program)
    environment.update(HUB_ADDRESS=hub.address, HUB_DIR=hub.dir)
    verdict = 0
    try:
        for part in PARTS:
            sys.stdout.flush()
            verdict |= subprocess.run(["node", os.path.join(HERE, part)], env=environment).returncode
        if verdict:
            print("the hub's log:", hub.log(), sep="\n")
    finally:
        hub.close()
    return verdict


if __name__ == "__main__":
    sys.exit(main())
