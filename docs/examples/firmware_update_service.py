#!/usr/bin/env python3
"""Updates one device's firmware through Azure IoT Hub, and tells what happens.

    pip install azure-iot-hub==2.7.0 six
    export IOTHUB_CONNECTION_STRING='HostName=...;SharedAccessKeyName=...;SharedAccessKey=...'
    python3 firmware_update_service.py DEVICE https://host/path/new.fwb

It invokes the direct method firmwareUpdate, prints the answer, and then polls the device's twin until the update has
ended. Against a local hub, first: export REQUESTS_CA_BUNDLE=hub/ca.pem

Exit status: 0 completed, 1 failed, rolled back or cancelled, 2 usage, 3 refused by the device, 4 device or hub not
reached, or no end within --timeout.
"""

import argparse
import json
import os
import sys
import time

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod
from msrest.exceptions import ClientException, HttpOperationError
from requests.exceptions import RequestException

POLL_SECONDS = 0.5
FINAL = {"completed": 0, "failed": 1, "rolledBack": 1, "cancelled": 1}
SHOWN = ["firmwareStatus", "downloadComplete", "startedApplyingImage", "lastFirmwareUpdate"]


def explain(error):
    """The hub puts its reason into the body; the SDK's own message has only the status."""
    return error.response.text if isinstance(error, HttpOperationError) else str(error)


def start(registry, device, request):
    """Invokes firmwareUpdate; returns the device's status and answer."""
    method = CloudToDeviceMethod(
        method_name="firmwareUpdate", payload=request, response_timeout_in_seconds=30, connect_timeout_in_seconds=15
    )
    answer = registry.invoke_device_method(device, method)
    print(f"{device} answered {answer.status}: {json.dumps(answer.payload)}", flush=True)
    return answer.status, answer.payload if isinstance(answer.payload, dict) else {}


def written(reported):
    """When the device last wrote its firmwareStatus, by the hub's clock."""
    return reported.get("$metadata", {}).get("firmwareStatus", {}).get("$lastUpdated")


def ended(reported, operation, before):
    """Whether the final status in the twin is this operation's, and not what an earlier update left there."""
    if reported.get("firmwareStatus") not in FINAL:
        return False
    last = (reported.get("fwupdate") or {}).get("last")
    if operation and last:
        return last.get("id") == operation
    return written(reported) != before


def show(reported):
    print("  " + "  ".join(f"{key}={reported[key]}" for key in SHOWN if key in reported), flush=True)


def watch(registry, device, operation, before, timeout):
    """Prints each change of stage; returns the exit status."""
    deadline = time.monotonic() + timeout
    shown = problem = None
    while time.monotonic() < deadline:
        try:
            reported = registry.get_twin(device).properties.reported
            problem = None
        except (ClientException, RequestException) as error:
            if explain(error) != problem:
                problem = explain(error)
                print(f"cannot read the twin, trying again: {problem}", file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
            continue
        stage = [reported.get(key) for key in SHOWN]
        if stage != shown:
            show(reported)
            shown = stage
        if ended(reported, operation, before):
            error = ((reported.get("fwupdate") or {}).get("last") or {}).get("error")
            if error:
                print(f"{error.get('code')}: {error.get('message')}", file=sys.stderr)
            return FINAL[reported["firmwareStatus"]]
        time.sleep(POLL_SECONDS)
    print(f"{device} has not ended the update within {timeout} s; it goes on, look at its twin later", file=sys.stderr)
    return 4


def main():
    parser = argparse.ArgumentParser(description="Update a device's firmware through Azure IoT Hub.")
    parser.add_argument("device", help="device id")
    parser.add_argument("uri", help="https URL of the firmware bundle")
    parser.add_argument("--version", help="the version that is expected in the bundle")
    parser.add_argument("--operation-id", help="an id of your own for this update")
    parser.add_argument("--connection-string", default=os.environ.get("IOTHUB_CONNECTION_STRING"))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds to watch (default 3600)")
    arguments = parser.parse_args()
    if not arguments.connection_string:
        parser.error("give --connection-string or set IOTHUB_CONNECTION_STRING")

    request = {"fwPackageUri": arguments.uri}
    if arguments.version:
        request["version"] = arguments.version
    if arguments.operation_id:
        request["operationId"] = arguments.operation_id
    try:
        registry = IoTHubRegistryManager.from_connection_string(arguments.connection_string)
        before = written(registry.get_twin(arguments.device).properties.reported)
        status, answer = start(registry, arguments.device, request)
    except (ClientException, RequestException) as error:
        print(f"cannot start the update of {arguments.device}: {explain(error)}", file=sys.stderr)
        return 4
    if status != 200:
        return 3
    return watch(registry, arguments.device, answer.get("operationId"), before, arguments.timeout)


if __name__ == "__main__":
    sys.exit(main())
