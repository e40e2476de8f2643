"""azure-iot-device's provisioning client, unmodified, against fwupdate-hub, and then the device client with what it got."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import urllib.request

from azure.iot.device import IoTHubDeviceClient, ProvisioningDeviceClient, ProxyOptions, X509
from azure.iot.device.exceptions import ClientError, CredentialError

from harness import verdict_on, Hub, PortProxy, equal


class Scene:
    """A hub, and enrollments made by its command."""

    def __init__(self, program):
        self.hub = Hub(program)

    def enrol(self, name, *arguments):
        """The fields of what `enrollment add` prints."""
        line = self.hub.enrollment("add", name, *arguments)
        return dict(field.split("=", 1) for field in line.split(";"))

    def registration(self, name):
        """The newest that the hub recorded."""
        url = f"https://{self.hub.address}:{self.hub.https_port}/admin/registrations"
        with urllib.request.urlopen(url, context=self.hub.tls()) as answer:
            return [one for one in json.load(answer) if one["registrationId"] == name][-1]

    def by_key(self, name, scope, key, **more):
        return ProvisioningDeviceClient.create_from_symmetric_key(
            self.hub.address, name, scope, key, server_verification_cert=self.hub.ca_text, **more
        )

    def by_certificate(self, name, scope, certificate, key):
        return ProvisioningDeviceClient.create_from_x509_certificate(
            self.hub.address, name, scope, X509(certificate, key), server_verification_cert=self.hub.ca_text
        )

    def path(self, name):
        return os.path.join(self.hub.dir, name)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], check=True, stderr=subprocess.DEVNULL)

    def certificate(self, name):
        """Self-signed, with this common name."""
        certificate, key = self.path(f"{name}.pem"), self.path(f"{name}.key")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl("req", "-x509", *new_key, "-days", "2", "-subj", f"/CN={name}", "-out", certificate, "-keyout", key)
        return certificate, key

    def signed_certificate(self, name, authority, authority_key):
        certificate, key, request = self.path(f"{name}.pem"), self.path(f"{name}.key"), self.path(f"{name}.csr")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl("req", *new_key, "-subj", f"/CN={name}", "-out", request, "-keyout", key)
        extensions = self.path("v3.txt")
        with open(extensions, "w") as file:
            file.write("basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n")
        signer = ["-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions]
        self.openssl("x509", "-req", "-in", request, *signer, "-days", "2", "-out", certificate)
        return certificate, key

    def close(self):
        self.hub.close()


def assigned(client):
    result = client.register()
    equal(result.status, "assigned")
    return result.registration_state


def works(device):
    """The device client can be used with what was assigned."""
    device.connect()
    device.patch_twin_reported_properties({"provisioned": True})
    equal(device.get_twin()["reported"]["provisioned"], True)
    device.shutdown()


def registers_with_a_key_and_hands_over_a_payload(scene):
    key = scene.enrol("by-key", "--returns", '{"line": 4}')
    client = scene.by_key("by-key", key["IdScope"], key["SymmetricKey"])
    client.provisioning_payload = {"site": "Berlin"}
    state = assigned(client)
    equal((state.assigned_hub, state.device_id, state.sub_status), (scene.hub.address, "by-key", "initialAssignment"))
    equal(json.loads(state.response_payload), {"line": 4})
    equal(scene.registration("by-key")["payload"], {"site": "Berlin"})
    works(
        IoTHubDeviceClient.create_from_symmetric_key(
            key["SymmetricKey"], state.assigned_hub, state.device_id, server_verification_cert=scene.hub.ca_text
        )
    )


def registers_with_a_key_derived_from_a_group_s(scene):
    group = scene.enrol("fleet", "--group")
    secret = base64.b64decode(group["GroupKey"])
    derived = base64.b64encode(hmac.new(secret, b"gw-17", hashlib.sha256).digest()).decode()
    state = assigned(scene.by_key("gw-17", group["IdScope"], derived))
    equal((state.device_id, scene.registration("gw-17")["enrollment"]), ("gw-17", "fleet"))
    works(
        IoTHubDeviceClient.create_from_symmetric_key(
            derived, state.assigned_hub, state.device_id, server_verification_cert=scene.hub.ca_text
        )
    )


def registers_with_a_certificate(scene):
    certificate, key = scene.certificate("by-cert")
    scope = scene.enrol("by-cert", "--certificate", certificate)["IdScope"]
    state = assigned(scene.by_certificate("by-cert", scope, certificate, key))
    works(
        IoTHubDeviceClient.create_from_x509_certificate(
            X509(certificate, key), state.assigned_hub, state.device_id, server_verification_cert=scene.hub.ca_text
        )
    )


def registers_with_a_certificate_that_a_group_s_authority_signed(scene):
    authority, authority_key = scene.certificate("authority")
    scope = scene.enrol("signed", "--group", "--certificate", authority)["IdScope"]
    certificate, key = scene.signed_certificate("gw-18", authority, authority_key)
    state = assigned(scene.by_certificate("gw-18", scope, certificate, key))
    equal((state.device_id, scene.registration("gw-18")["enrollment"]), ("gw-18", "signed"))
    works(
        IoTHubDeviceClient.create_from_x509_certificate(
            X509(certificate, key), state.assigned_hub, state.device_id, server_verification_cert=scene.hub.ca_text
        )
    )
    stranger, stranger_key = scene.certificate("gw-19")
    refused(scene.by_certificate("gw-19", scope, stranger, stranger_key), CredentialError)


def registers_over_websocket(scene):
    key = scene.enrol("by-web")
    proxy = PortProxy(scene.hub.address, scene.hub.https_port)
    through = {"websockets": True, "proxy_options": ProxyOptions("HTTP", "127.0.0.1", proxy.port)}
    equal(assigned(scene.by_key("by-web", key["IdScope"], key["SymmetricKey"], **through)).device_id, "by-web")
    proxy.close()


def registers_again_and_is_led_elsewhere(scene):
    key = scene.enrol("moving")
    equal(assigned(scene.by_key("moving", key["IdScope"], key["SymmetricKey"])).device_id, "moving")
    scene.hub.enrollment("set", "moving", "--assign-to", "other.azure-devices.net", "--device", "moved", "--polls", "2")
    state = assigned(scene.by_key("moving", key["IdScope"], key["SymmetricKey"]))
    equal((state.assigned_hub, state.device_id), ("other.azure-devices.net", "moved"))


def refused(client, error):
    try:
        client.register()
    except error:
        return
    raise AssertionError("the registration should have been refused")


def is_told_why_not(scene):
    key = scene.enrol("unlucky", "--fail", "no hub fits")
    result = None
    try:
        result = scene.by_key("unlucky", key["IdScope"], key["SymmetricKey"]).register()
    except ClientError:
        pass
    assert result is None or result.status == "failed", result
    equal(scene.registration("unlucky")["status"], "failed")
    scene.hub.enrollment("set", "unlucky", "--disabled")
    refused(scene.by_key("unlucky", key["IdScope"], key["SymmetricKey"]), ClientError)
    equal(scene.registration("unlucky")["status"], "disabled")


def a_wrong_key_is_refused(scene):
    key = scene.enrol("impostor")
    refused(scene.by_key("impostor", key["IdScope"], "d3Jvbmd3cm9uZ3dyb25n"), CredentialError)
    refused(scene.by_key("nobody", key["IdScope"], key["SymmetricKey"]), CredentialError)


CHECKS = [
    registers_with_a_key_and_hands_over_a_payload,
    registers_with_a_key_derived_from_a_group_s,
    registers_with_a_certificate,
    registers_with_a_certificate_that_a_group_s_authority_signed,
    registers_over_websocket,
    registers_again_and_is_led_elsewhere,
    is_told_why_not,
    a_wrong_key_is_refused,
]


def main():
    return verdict_on(Scene(sys.argv[1]), CHECKS)


if __name__ == "__main__":
    verdict = main()
    sys.stdout.flush()
    # The SDK leaves timers behind after a refusal, which complain when the interpreter shuts down in an orderly way.
    os._exit(verdict)
