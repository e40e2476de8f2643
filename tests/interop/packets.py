"""MQTT 3.1.1 packets, read from their bytes by nothing but the standard: what two clients say can be compared.

`read` checks that the bytes are the only way to write what they say, so that packets with equal fields are equal bytes.
"""

import struct

NAMES = {1: "CONNECT", 3: "PUBLISH", 4: "PUBACK", 8: "SUBSCRIBE", 10: "UNSUBSCRIBE", 12: "PINGREQ", 14: "DISCONNECT"}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError("the packet ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self):
        return struct.unpack(">H", self.take(2))[0]

    def binary(self):
        return self.take(self.number())

    def text(self):
        return self.binary().decode("utf-8")

    def rest(self):
        return self.take(len(self.data) - self.at)


def split(data):
    """First byte and body; the length must be written in as few bytes as it needs."""
    length, shift, at = 0, 0, 1
    while True:
        byte = data[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    if byte == 0 and at > 2:
        raise ValueError("the remaining length has leading zeros")
    if len(data) != at + length:
        raise ValueError("the remaining length is wrong")
    return data[0], data[at:]


def read(data):
    """A client's packet as a dictionary; its bytes are checked for flags that must be zero."""
    first, body = split(data)
    kind, flags = NAMES.get(first >> 4), first & 15
    reader = Reader(body)
    if kind is None:
        raise ValueError(f"packet type {first >> 4} is none of a client's")
    if kind != "PUBLISH" and flags != (2 if kind in ("SUBSCRIBE", "UNSUBSCRIBE") else 0):
        raise ValueError(f"the flags of {kind} are {flags}")
    fields = {"CONNECT": connect, "PUBLISH": lambda r: publish(r, flags), "SUBSCRIBE": subscribe,
              "UNSUBSCRIBE": unsubscribe, "PUBACK": lambda r: {"packet id": r.number()}}.get(kind, lambda r: {})(reader)
    if reader.rest():
        raise ValueError(f"{kind} is longer than what it says")
    return {"packet": kind, **fields}


def connect(reader):
    protocol, level, flags, keep_alive = reader.text(), reader.take(1)[0], reader.take(1)[0], reader.number()
    if flags & 1:
        raise ValueError("the reserved flag of CONNECT is set")
    fields = {"protocol": f"{protocol} {level}", "clean session": flags >> 1 & 1, "keep alive": keep_alive,
              "client id": reader.text(), "will": None, "user name": None, "password": None}
    if flags >> 2 & 1:
        fields["will"] = {"topic": reader.text(), "message": reader.binary().hex(), "qos": flags >> 3 & 3,
                          "retain": flags >> 5 & 1}
    if flags >> 7 & 1:
        fields["user name"] = reader.text()
    if flags >> 6 & 1:
        fields["password"] = reader.text()
    return fields


def publish(reader, flags):
    qos = flags >> 1 & 3
    fields = {"topic": reader.text(), "qos": qos, "retain": flags & 1, "duplicate": flags >> 3 & 1}
    if qos:
        fields["packet id"] = reader.number()
    return {**fields, "payload": reader.rest()}


def subscribe(reader):
    fields = {"packet id": reader.number(), "filters": []}
    while reader.at < len(reader.data):
        fields["filters"].append((reader.text(), reader.take(1)[0]))
    return fields


def unsubscribe(reader):
    fields = {"packet id": reader.number(), "filters": []}
    while reader.at < len(reader.data):
        fields["filters"].append(reader.text())
    return fields
