"""Microsoft's SDKs for Node, unmodified, against fwupdate-hub: each file of checks beside a hub of its own, all at once.

They dial port 443 for REST and WebSocket and 8883 for MQTT, and no others, so each hub needs an address of its own with
both. They trust it by Node's own variable, which is read when a process starts: the hub must run before.
`node.py HUB` runs all files; `node.py HUB FILE` runs one, and restarts its hub whenever that sends SIGUSR1.
"""

import os
import signal
import socket
import subprocess
import sys

from harness import Hub

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
MODULES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../target/node/node_modules")
PARTS = ["service.js", "device.js", "sessions.js", "provisioning.js"]


def may_listen():
    """Port 443 is root's on most machines."""
    try:
        socket.create_server(("127.0.0.2", 443)).close()
    except PermissionError:
        return False
    return True


def run(program, part):
    hub = Hub(program, https_port=443)
    signal.signal(signal.SIGUSR1, lambda *_: hub.restart())
    environment = dict(os.environ, NODE_PATH=MODULES, NODE_EXTRA_CA_CERTS=hub.ca, HUB_PROGRAM=hub.program)
    environment.update(HUB_ADDRESS=hub.address, HUB_DIR=hub.dir)
    try:
        sys.stdout.flush()
        verdict = subprocess.run(["node", "--no-deprecation", os.path.join(HERE, part)], env=environment).returncode
        if verdict:
            print("the hub's log:", hub.log(), sep="\n")
    finally:
        hub.close()
    return verdict


def main():
    if not may_listen():
        print("not root: the SDKs for Node are left out, for they dial port 443")
        return 0
    if len(sys.argv) > 2:
        return run(*sys.argv[1:])
    command = [sys.executable, "-B", __file__, sys.argv[1]]
    running = [subprocess.Popen([*command, part], stdout=subprocess.PIPE, text=True) for part in PARTS]
    for part in running:
        print(part.communicate()[0], end="", flush=True)
    return max(part.returncode for part in running)


if __name__ == "__main__":
    sys.exit(main())
