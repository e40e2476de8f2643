"""What the interop checks share: a hub process on an address of its own, checks that are counted, and waiting."""

import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback

MQTT_PORT = 8883  # the device SDK dials no other


class Hub:
    """A fwupdate-hub process. The device SDK's port is fixed, so several runs on a machine differ by address."""

    def __init__(self, program, www=None, https_port=0):
        self.program = program
        self.folder = tempfile.TemporaryDirectory(prefix="fwupdate-interop-")
        self.dir = self.folder.name
        self.www = www
        self.process = None
        self.address = None
        self.https_port = https_port
        self._start_somewhere()

    def _start_somewhere(self):
        for _ in range(20):
            self.address = "127.{}.{}.{}".format(*(random.randint(1, 254) for _ in range(3)))
            if self.start():
                return
        raise RuntimeError("no free loopback address was found")

    def start(self):
        command = [self.program, "serve", "--dir", self.dir, "--bind", self.address]
        command += ["--mqtt-port", str(MQTT_PORT), "--https-port", str(self.https_port)]
        command += ["--www", self.www] if self.www else []
        log = open(os.path.join(self.dir, "hub.log"), "ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        ready = self.process.stdout.readline()
        if not ready.startswith("ready"):
            self.process.wait()
            return False
        self.https_port = int(ready.split(" https ")[1].split()[0].rsplit(":", 1)[1])
        return True

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=20)

    def restart(self):
        self.stop()
        if not self.start():
            raise RuntimeError("the hub did not come back; see " + self.log())

    def log(self):
        with open(os.path.join(self.dir, "hub.log"), errors="replace") as log:
            return log.read()

    def device(self, *arguments):
        return self._tool("device", *arguments)

    def enrollment(self, *arguments):
        return self._tool("enrollment", *arguments)

    def _tool(self, *arguments):
        command = [self.program, *arguments, "--dir", self.dir]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    @property
    def ca(self):
        return os.path.join(self.dir, "ca.pem")

    @property
    def ca_text(self):
        with open(self.ca) as file:
            return file.read()

    @property
    def service(self):
        with open(os.path.join(self.dir, "service.txt")) as file:
            return file.read().strip()

    def tls(self):
        return ssl.create_default_context(cafile=self.ca)

    def close(self):
        if self.process.poll() is None:
            self.stop()
        self.folder.cleanup()


class PortProxy:
    """An HTTP CONNECT proxy that leads every request to one port: the device SDK's WebSocket port is fixed too."""

    def __init__(self, address, port):
        self.target = (address, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                return
            request += byte
        server = socket.create_connection(self.target)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
        self._pump(client, server)

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # either side may leave at any time

    def close(self):
        self.listener.close()


class Checks:
    """Runs checks one after the other and counts them."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def run(self, name, check, *arguments):
        try:
            check(*arguments)
        except Exception:
            self.failed += 1
            print(f"FAILED  {name}", flush=True)
            traceback.print_exc(file=sys.stdout)
        else:
            self.passed += 1
            print(f"ok      {name}", flush=True)

    def verdict(self):
        verdict = "ok" if self.failed == 0 else "FAILED"
        print(f"test result: {verdict}. {self.passed} passed; {self.failed} failed", flush=True)
        return 0 if self.failed == 0 and self.passed > 0 else 1


def verdict_on(scene, checks):
    """Runs all checks on a scene, shows its hub's log if one failed, and closes it; the exit status."""
    done = Checks()
    try:
        for check in checks:
            done.run(check.__name__.replace("_", " "), check, scene)
        if done.failed:
            print("the hub's log:", scene.hub.log(), sep="\n")
    finally:
        scene.close()
    return done.verdict()


class Box:
    """Values that another thread puts in and a check waits for."""

    def __init__(self):
        self.values = []
        self.changed = threading.Condition()

    def put(self, value):
        with self.changed:
            self.values.append(value)
            self.changed.notify_all()

    def wait(self, wanted, seconds=20):
        found = lambda: next((value for value in self.values if wanted(value)), None)
        with self.changed:
            if not self.changed.wait_for(lambda: found() is not None, seconds):
                raise AssertionError(f"not seen within {seconds} s; seen: {self.values}")
            return found()


def eventually(condition, seconds=20):
    """Polls the other side of a network connection until `condition` gives something true."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"still {value!r} after {seconds} s")
        time.sleep(0.05)


def equal(left, right):
    if left != right:
        raise AssertionError(f"{left!r} is not {right!r}")
