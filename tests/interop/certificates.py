"""Certificates of a device's own key: asked for with openssl and paho alone, since Microsoft's SDKs of these versions
cannot, and then used by azure-iot-device, unmodified."""

import base64
import hashlib
import hmac
import json
import os
import ssl
import sys
import time
import urllib.parse

import paho.mqtt.client as mqtt
from azure.iot.device import IoTHubDeviceClient, X509

from harness import Box, MQTT_PORT, equal, verdict_on
from provisioning import Scene, works


class Conversation:
    """One connection, subscribed to one filter."""

    def __init__(self, scene, identity, user_name, answers, password=None, pair=(None, None)):
        self.heard = Box()
        self.client = mqtt.Client(identity, clean_session=True, protocol=mqtt.MQTTv311)
        self.client.tls_set(scene.hub.ca, certfile=pair[0], keyfile=pair[1], cert_reqs=ssl.CERT_REQUIRED)
        self.client.username_pw_set(user_name, password)
        self.client.on_connect = lambda client, data, flags, code: client.subscribe(answers, qos=1)
        self.client.on_subscribe = lambda *_: self.heard.put("subscribed")
        self.client.on_message = lambda client, data, message: self.heard.put((message.topic, message.payload))
        self.client.connect(scene.hub.address, MQTT_PORT)
        self.client.loop_start()
        self.heard.wait(lambda said: said == "subscribed")

    def say(self, topic, body=""):
        self.client.publish(topic, body if isinstance(body, str) else json.dumps(body), qos=1)

    def hear(self, start):
        """The first message whose topic starts so: its body."""
        return json.loads(self.heard.wait(lambda said: said[0].startswith(start))[1])

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def request(scene, name, file):
    """A new key's file, and the signing request in base64."""
    key, asked = scene.path(f"{file}.key"), scene.path(f"{file}.csr")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key]
    scene.openssl("req", "-new", *new_key, "-subj", f"/CN={name}", "-outform", "DER", "-out", asked)
    with open(asked, "rb") as content:
        return key, base64.b64encode(content.read()).decode()


def pair(scene, key, chain):
    """The files of a chain, the leaf first, and its key."""
    certificate = key.replace(".key", ".pem")
    with open(certificate, "w") as file:
        file.writelines(ssl.DER_cert_to_PEM_cert(base64.b64decode(one)) for one in chain)
    return certificate, key


def registered(scene, name):
    group = scene.enrol("issuing", "--group", "--issues", "7d")
    own = hmac.new(base64.b64decode(group["GroupKey"]), name.encode(), hashlib.sha256).digest()
    resource, end = f"{group['IdScope']}/registrations/{name}", int(time.time()) + 600
    quoted = urllib.parse.quote(resource, safe="")
    signature = base64.b64encode(hmac.new(own, f"{quoted}\n{end}".encode(), hashlib.sha256).digest())
    token = f"SharedAccessSignature sr={quoted}&sig={urllib.parse.quote(signature, safe='')}&se={end}&skn=registration"
    user_name = f"{resource}/api-version=2025-07-01-preview"
    talk = Conversation(scene, name, user_name, "$dps/registrations/res/#", password=token)
    key, csr = request(scene, name, "first")
    talk.say("$dps/registrations/PUT/iotdps-register/?$rid=1", {"registrationId": name, "csr": csr})
    operation = talk.hear("$dps/registrations/res/202/?$rid=1")["operationId"]
    for rid in ("2", "3"):
        topic = "$dps/registrations/GET/iotdps-get-operationstatus/"
        talk.say(f"{topic}?$rid={rid}&operationId={operation}")
    state = talk.hear("$dps/registrations/res/200/")["registrationState"]
    talk.close()
    return state, pair(scene, key, state["issuedCertificateChain"])


def asked_for_at_registration_and_renewed_at_the_hub(scene):
    state, first = registered(scene, "gw-20")
    equal((state["status"], state["deviceId"]), ("assigned", "gw-20"))
    user_name = f"{state['assignedHub']}/gw-20/?api-version=2025-08-01-preview"
    talk = Conversation(scene, "gw-20", user_name, "$iothub/credentials/res/#", pair=first)
    key, csr = request(scene, "gw-20", "second")
    body = {"id": "gw-20", "csr": csr, "replace": "*"}
    talk.say("$iothub/credentials/POST/issueCertificate/?$rid=renewal-1", body)
    accepted = talk.hear("$iothub/credentials/res/202/?$rid=renewal-1")
    issued = talk.hear("$iothub/credentials/res/200/?$rid=renewal-1")
    equal(issued["correlationId"], accepted["correlationId"])
    talk.close()
    for certificate, key in (first, pair(scene, key, issued["certificates"])):
        works(
            IoTHubDeviceClient.create_from_x509_certificate(
                X509(certificate, key), state["assignedHub"], "gw-20", server_verification_cert=scene.hub.ca_text
            )
        )


if __name__ == "__main__":
    verdict = verdict_on(Scene(sys.argv[1]), [asked_for_at_registration_and_renewed_at_the_hub])
    sys.stdout.flush()
    os._exit(verdict)
