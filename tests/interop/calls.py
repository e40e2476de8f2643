"""azure-iot-hub and azure-iot-device, unmodified, against fwupdate-hub: the calls that sdks.py and fleet.py do not make."""

import json
import sys
import time
import urllib.request
from base64 import b64decode, b64encode
from hashlib import sha256
from hmac import HMAC
from urllib.parse import quote_plus, urlencode

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, ProxyOptions
from azure.iot.device.exceptions import ClientError
from azure.iot.hub import DigitalTwinClient, IoTHubHttpRuntimeManager
from azure.iot.hub.models import Twin, TwinProperties

from uamqp.errors import AMQPConnectionError

from harness import Box, PortProxy, equal, eventually, verdict_on
from sdks import Scene, service_error

PRINT, OTHER_PRINT = "A" * 40, "B" * 64


def admin(scene, where, body=None):
    """The administration, by POST if there is a body."""
    url = f"https://{scene.hub.address}:{scene.hub.https_port}/admin/{where}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, context=scene.hub.tls()) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def fields(text):
    return dict(pair.split("=", 1) for pair in text.split(";"))


def token(scene, text, seconds):
    """A token as a device's owner makes it."""
    known = fields(text)
    resource = quote_plus(f"{scene.hub.address}/devices/{known['DeviceId']}")
    expiry = str(int(time.time()) + seconds)
    signature = HMAC(b64decode(known["SharedAccessKey"]), f"{resource}\n{expiry}".encode(), sha256).digest()
    return f"SharedAccessSignature sr={resource}&" + urlencode({"sig": b64encode(signature), "se": expiry})


# -- the service --


def changes_a_device_s_thumbprints(scene):
    made = scene.service.create_device_with_x509("print", PRINT, PRINT, "enabled")
    changed = scene.service.update_device_with_x509("print", made.etag, OTHER_PRINT, PRINT, "disabled")
    equal((changed.status, changed.authentication.x509_thumbprint.primary_thumbprint), ("disabled", OTHER_PRINT))


def makes_reads_changes_and_removes_modules(scene):
    scene.service.create_device_with_sas("host", "", "", "enabled")
    key = b64encode(b"k" * 32).decode()
    made = scene.service.create_module_with_sas("host", "one", "me", key, key)
    changed = scene.service.update_module_with_sas("host", "one", "you", made.etag, key, key)
    equal((changed.managed_by, changed.etag == made.etag), ("you", False))
    printed = scene.service.create_module_with_x509("host", "two", "", PRINT, PRINT)
    scene.service.update_module_with_x509("host", "two", "", printed.etag, OTHER_PRINT, PRINT)
    equal(scene.service.get_module("host", "two").authentication.x509_thumbprint.primary_thumbprint, OTHER_PRINT)
    equal(sorted(module.module_id for module in scene.service.get_modules("host")), ["one", "two"])
    equal(service_error(lambda: scene.service.delete_module("host", "one", made.etag))[0], 412)
    scene.service.delete_module("host", "one")
    equal([module.module_id for module in scene.service.get_modules("host")], ["two"])


def patches_and_replaces_a_module_s_twin(scene):
    twin = scene.service.get_module_twin("host", "two")
    patch = Twin(properties=TwinProperties(desired={"a": 1, "b": 2}))
    changed = scene.service.update_module_twin("host", "two", patch, twin.etag)
    equal(service_error(lambda: scene.service.update_module_twin("host", "two", patch, twin.etag))[0], 412)
    whole = Twin(properties=TwinProperties(desired={"c": 3}))
    replaced = scene.service.replace_module_twin("host", "two", whole, changed.etag)
    equal({k: v for k, v in replaced.properties.desired.items() if not k.startswith("$")}, {"c": 3})


def is_told_what_is_left_out(scene):
    """docs/local-hub.md names each of these."""
    digital = DigitalTwinClient.from_connection_string(scene.hub.service)
    feedback = IoTHubHttpRuntimeManager.from_connection_string(scene.hub.service)
    left_out = [
        lambda: scene.service.create_module_with_certificate_authority("host", "ca", ""),
        lambda: scene.service.update_device_with_certificate_authority("host", "*", "enabled"),
        lambda: digital.get_digital_twin("host"),
        lambda: digital.update_digital_twin("host", [{"op": "add", "path": "/a", "value": 1}]),
        lambda: digital.invoke_command("host", "reboot", "now"),
        lambda: digital.invoke_component_command("host", "thermostat1", "reboot", "now"),
        feedback.receive_feedback_notification,
        lambda: feedback.complete_feedback_notification("lock"),
        lambda: feedback.abandon_feedback_notification("lock"),
    ]
    equal([service_error(call)[0] for call in left_out], [501] * len(left_out))


def finds_nobody_who_speaks_amqp(scene):
    try:
        scene.service.send_c2d_message("host", "hello")
    except AMQPConnectionError:
        return
    raise AssertionError("the message should not have been sent")


# -- the device --


def receives_messages(scene):
    got = Box()
    text = scene.hub.device("add", "listener")
    admin(scene, "messages/listener", {"body": "early", "properties": {"$.mid": "m-1", "$.ct": "text/plain", "a b": "c&d"}})
    client = IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=scene.hub.ca_text)
    client.on_message_received = got.put
    client.connect()
    early = got.wait(lambda message: message.data == b"early")
    equal((early.message_id, early.content_type, early.custom_properties), ("m-1", "text/plain", {"a b": "c&d"}))
    admin(scene, "messages/listener", {"body": "late"})
    got.wait(lambda message: message.data == b"late")
    eventually(lambda: scene.service.get_twin("listener").cloud_to_device_message_count == 0)
    client.shutdown()


def changes_its_token(scene):
    text = scene.hub.device("add", "token")
    client = IoTHubDeviceClient.create_from_sastoken(token(scene, text, 600), server_verification_cert=scene.hub.ca_text)
    states = Box()
    client.on_connection_state_change = lambda: states.put(client.connected)
    client.connect()
    states.wait(lambda connected: connected)
    client.update_sastoken(token(scene, text, 1200))
    client.send_message(Message("after"))
    equal(admin(scene, "telemetry/token")[-1]["body"], "after")
    client.disconnect()
    states.wait(lambda connected: not connected)
    client.shutdown()


def finds_no_place_for_files(scene):
    text = scene.hub.device("add", "files")
    proxy = PortProxy(scene.hub.address, scene.hub.https_port)
    client = IoTHubDeviceClient.create_from_connection_string(
        text, server_verification_cert=scene.hub.ca_text, proxy_options=ProxyOptions("HTTP", "127.0.0.1", proxy.port)
    )
    for call in [
        lambda: client.get_storage_info_for_blob("log.txt"),
        lambda: client.notify_blob_upload_status("correlation", True, 200, "OK"),
    ]:
        try:
            call()
        except ClientError as error:
            assert "501" in str(error.__cause__), error.__cause__
            continue
        raise AssertionError("the call should have been refused")
    client.shutdown()
    proxy.close()


def a_module_sends_to_an_output(scene):
    scene.service.create_module_with_sas("host", "sender", "", "", "")
    text = next(line for line in scene.hub.device("list").splitlines() if "ModuleId=sender" in line)
    client = IoTHubModuleClient.create_from_connection_string(text, server_verification_cert=scene.hub.ca_text)
    client.connect()
    client.send_message_to_output(Message("x"), "out")
    assert "%24.on=out" in admin(scene, "telemetry/host%2Fsender")[-1]["properties"]
    client.shutdown()


CHECKS = [
    changes_a_device_s_thumbprints,
    makes_reads_changes_and_removes_modules,
    patches_and_replaces_a_module_s_twin,
    is_told_what_is_left_out,
    finds_nobody_who_speaks_amqp,
    receives_messages,
    changes_its_token,
    finds_no_place_for_files,
    a_module_sends_to_an_output,
]


def main():
    return verdict_on(Scene(sys.argv[1]), CHECKS)


if __name__ == "__main__":
    sys.exit(main())
