"""docs/examples/firmware_update_service.py against a device that plays its part by azure-iot-device.

The device here is a stand-in for the agent's reports, so that the service app's own logic is checked: that it shows
each stage, that an earlier update's status does not fool it, and that its exit status is right.
"""

import os
import subprocess
import sys
import threading

from azure.iot.device import IoTHubDeviceClient, MethodResponse

from harness import Checks, Hub, equal

APP = os.path.join(os.path.dirname(__file__), "../../docs/examples/firmware_update_service.py")


class Device:
    """Answers firmwareUpdate and reports the stages that `outcomes` names for the URI."""

    def __init__(self, hub):
        self.client = IoTHubDeviceClient.create_from_connection_string(
            hub.device("add", "gateway"), server_verification_cert=hub.ca_text
        )
        self.client.on_method_request_received = self.answer
        self.client.connect()
        # What an earlier update left in the twin.
        last = {"id": "earlier", "result": "committed"}
        self.client.patch_twin_reported_properties({"firmwareStatus": "completed", "fwupdate": {"last": last}})

    def answer(self, request):
        uri = request.payload["fwPackageUri"]
        if uri.endswith("/busy"):
            error = {"error": {"code": "Busy", "message": "another operation runs", "operationId": "earlier"}}
            self.client.send_method_response(MethodResponse.create_from_method_request(request, 409, error))
            return
        operation = request.payload.get("operationId", "op-1")
        payload = {"Response": "Firmware update started", "operationId": operation}
        self.client.send_method_response(MethodResponse.create_from_method_request(request, 200, payload))
        threading.Thread(target=self.play, args=(operation, uri.rsplit("/", 1)[1]), daemon=True).start()

    def play(self, operation, result):
        patch = self.client.patch_twin_reported_properties
        patch({"firmwareStatus": "downloading", "fwupdate": {"operation": {"id": operation}}})
        patch({"firmwareStatus": "applying", "downloadComplete": "2026-01-01T00:00:01Z"})
        error = None if result == "completed" else {"code": "HealthCheckFailed", "message": "sshd is not active"}
        last = {"id": operation, "result": result, "error": error}
        patch({"firmwareStatus": result, "fwupdate": {"operation": None, "last": last}})


def app(hub, *arguments):
    environment = dict(os.environ, IOTHUB_CONNECTION_STRING=hub.service, REQUESTS_CA_BUNDLE=hub.ca)
    command = [sys.executable, APP, *arguments, "--timeout", "60"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def a_good_update(hub):
    run = app(hub, "gateway", "https://x/completed", "--operation-id", "mine")
    equal(run.returncode, 0)
    assert run.stdout.startswith("gateway answered 200: "), run.stdout
    assert '"operationId": "mine"' in run.stdout, run.stdout
    assert "firmwareStatus=completed  downloadComplete=2026-01-01T00:00:01Z" in run.stdout.splitlines()[-1], run.stdout


def a_rollback_is_a_failure_with_its_reason(hub):
    run = app(hub, "gateway", "https://x/rolledBack", "--operation-id", "other")
    equal(run.returncode, 1)
    assert "firmwareStatus=rolledBack" in run.stdout, run.stdout
    assert "HealthCheckFailed: sshd is not active" in run.stderr, run.stderr


def a_refusal(hub):
    run = app(hub, "gateway", "https://x/busy")
    equal(run.returncode, 3)
    assert "answered 409" in run.stdout and "Busy" in run.stdout, run.stdout


def an_unknown_device(hub):
    run = app(hub, "nobody", "https://x/completed")
    equal(run.returncode, 4)
    assert "DeviceNotFound" in run.stderr, run.stderr


def main():
    hub, checks = Hub(sys.argv[1]), Checks()
    device = None
    try:
        device = Device(hub)
        for check in [a_good_update, a_rollback_is_a_failure_with_its_reason, a_refusal, an_unknown_device]:
            checks.run("service app: " + check.__name__.replace("_", " "), check, hub)
    finally:
        if device:
            device.client.shutdown()
        hub.close()
    return checks.verdict()


if __name__ == "__main__":
    sys.exit(main())
