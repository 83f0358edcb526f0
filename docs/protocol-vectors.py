#!/usr/bin/env python3
"""Reads docs/protocol-vectors.json with nothing but Python's standard library.

It is a second reading of docs/protocol.md, written apart from the Go code: whoever
ports DX1 can compare with it step by step, and `make vectors` runs it. The ciphers
are written for reading, not for use: they are slow and not constant in time.
"""
import hashlib, hmac, json, os, struct, sys

unhex = bytes.fromhex
u32 = lambda n: struct.pack(">I", n & 0xFFFFFFFF)
xor = lambda a, b: bytes(x ^ y for x, y in zip(a, b))


# Ciphers ---------------------------------------------------------------------

def x25519(private, share):  # RFC 7748
    p = 2**255 - 19
    k = int.from_bytes(private, "little") & ~(7 | 1 << 255) & (2**256 - 1) | 1 << 254
    u = int.from_bytes(share, "little") & (2**255 - 1)
    x1, x2, z2, x3, z3, swapped = u, 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if bit != swapped:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def chacha_block(key, counter, nonce):  # RFC 8439
    m = 0xFFFFFFFF
    start = struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<I", counter) + nonce)
    s = list(start)
    rounds = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
              (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(10):
        for a, b, c, d in rounds:
            for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = s[x] + s[y] & m
                v = s[z] ^ s[x]
                s[z] = (v << n | v >> 32 - n) & m
    return struct.pack("<16I", *(a + b & m for a, b in zip(s, start)))


def chacha_seal(key, nonce, plain, aad):
    sealed = b"".join(xor(plain[i:i + 64], chacha_block(key, 1 + i // 64, nonce)) for i in range(0, len(plain), 64))
    once = chacha_block(key, 0, nonce)[:32]
    r = int.from_bytes(once[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    padded = lambda b: b + bytes(-len(b) % 16)
    acc, data = 0, padded(aad) + padded(sealed) + struct.pack("<QQ", len(aad), len(sealed))
    for i in range(0, len(data), 16):
        acc = (acc + int.from_bytes(data[i:i + 16] + b"\1", "little")) * r % (2**130 - 5)
    return sealed + (acc + int.from_bytes(once[16:], "little") & 2**128 - 1).to_bytes(16, "little")


def make_sbox():
    box, p, q = [0x63] * 256, 1, 1
    while True:
        p ^= p << 1 & 0xFF ^ (0x1B if p & 0x80 else 0)
        q ^= q << 1 & 0xFF
        q ^= q << 2 & 0xFF
        q ^= q << 4 & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        rot = lambda n: (q << n | q >> 8 - n) & 0xFF
        box[p] = q ^ rot(1) ^ rot(2) ^ rot(3) ^ rot(4) ^ 0x63
        if p == 1:
            return box


SBOX = make_sbox()


def aes_block(key, block):  # FIPS 197, with a key of 16 bytes
    words, rcon = [key[i:i + 4] for i in range(0, 16, 4)], 1
    for i in range(4, 44):
        w = words[-1]
        if i % 4 == 0:
            w = bytes(SBOX[b] for b in w[1:] + w[:1])
            w, rcon = bytes([w[0] ^ rcon]) + w[1:], (rcon << 1) ^ (0x11B if rcon & 0x80 else 0)
        words.append(xor(words[i - 4], w))
    keys = [b"".join(words[i:i + 4]) for i in range(0, 44, 4)]
    double = lambda b: b << 1 & 0xFF ^ (0x1B if b & 0x80 else 0)
    s = xor(block, keys[0])
    for n in range(1, 11):
        s = bytes(SBOX[s[(i + 4 * (i % 4)) % 16]] for i in range(16))
        if n < 10:
            mixed = []
            for c in range(0, 16, 4):
                col, total = s[c:c + 4], s[c] ^ s[c + 1] ^ s[c + 2] ^ s[c + 3]
                mixed += [col[i] ^ total ^ double(col[i] ^ col[(i + 1) % 4]) for i in range(4)]
            s = bytes(mixed)
        s = xor(s, keys[n])
    return s


def gcm_seal(key, nonce, plain, aad):  # NIST SP 800-38D
    pad = lambda i: aes_block(key, nonce + u32(i))
    sealed = b"".join(xor(plain[i:i + 16], pad(2 + i // 16)) for i in range(0, len(plain), 16))
    hkey, acc = int.from_bytes(aes_block(key, bytes(16)), "big"), 0
    padded = lambda b: b + bytes(-len(b) % 16)
    data = padded(aad) + padded(sealed) + struct.pack(">QQ", 8 * len(aad), 8 * len(sealed))
    for i in range(0, len(data), 16):
        x, v, acc = acc ^ int.from_bytes(data[i:i + 16], "big"), hkey, 0
        for bit in range(127, -1, -1):
            acc ^= v if x >> bit & 1 else 0
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
    return sealed + xor(acc.to_bytes(16, "big"), pad(1))


def seal(key, nonce, plain, aad):
    return (chacha_seal if len(key) == 32 else gcm_seal)(key, nonce, plain, aad)


def open_(key, nonce, sealed, aad):
    """The plaintext, or None. Both ciphers XOR a stream, so sealing twice opens."""
    plain = seal(key, nonce, sealed[:-16], aad)[:-16]
    return plain if len(sealed) >= 16 and hmac.compare_digest(seal(key, nonce, plain, aad), sealed) else None


# Keys: section 2 -------------------------------------------------------------

def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha256).digest()


def expand(prk, info, n):
    out, block, i = b"", b"", 1
    while len(out) < n:
        block = hmac.new(prk, block + info.encode() + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:n]


def nonce_of(iv, pn):
    return xor(iv, bytes(4) + struct.pack(">Q", pn))


def phases(secret, suite):
    """(secret, key, iv) of phase 0, 1, 2, …"""
    while True:
        yield secret, expand(secret, "dx1 key", 32 if suite == 1 else 16), expand(secret, "dx1 iv", 12)
        secret = expand(secret, "dx1 ku", 32)


# Varints, frames, messages: sections 6 and 7 -----------------------------------

class Bad(Exception):
    pass


class Reader:
    def __init__(self, b):
        self.b, self.at = b, 0

    def take(self, n):
        if n > len(self.b) - self.at:
            raise Bad("truncated frame")
        self.at += n
        return self.b[self.at - n:self.at]

    def uint(self, n):
        return int.from_bytes(self.take(n), "big")

    def varint(self):
        first = self.uint(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.uint(more)


def varint(n):
    for size, bits in ((1, 6), (2, 14), (4, 30), (8, 62)):
        if n < 1 << bits:
            return (n | (size.bit_length() - 1) << bits).to_bytes(size, "big")


def parse_frame(b):
    """(type, acknowledge, fields, length); fields as in the file."""
    r = Reader(b)
    t = r.uint(1)
    name, ack = {0: ("PADDING", False), 1: ("PING", True), 2: ("PONG", False), 3: ("ACK", False), 4: ("WINDOW", True),
                 5: ("RESUME", True), 8: ("MESSAGE", True), 9: ("RELIABLE", True), 0x10: ("PATH_CHALLENGE", True),
                 0x11: ("PATH_RESPONSE", False), 0x20: ("OFFLINE", True), 0x21: ("MOVE", True),
                 0x22: ("CLOSE", False)}.get(t, (None, None))
    f = {}
    if name is None:
        raise Bad("unknown frame type")
    if name == "PADDING":
        r.at = len(b)
    elif name == "PING":
        f = {"token": str(r.uint(8))}
    elif name == "PONG":
        f = {"token": str(r.uint(8)), "serverTimeUs": str(r.uint(8))}
    elif name == "ACK":
        f = parse_ack(r)
    elif name == "WINDOW":
        f = {"bytes": str(r.varint())}
    elif name == "RESUME":
        f = {"channel": r.uint(1), "next": str(r.varint())}
    elif name == "MESSAGE":
        f = {"message": r.take(r.varint()).hex()}
    elif name == "RELIABLE":
        f = {"channel": r.uint(1), "seq": str(r.varint())}
        flags = r.uint(1)
        data = r.take(r.varint())
        f.update(first=bool(flags & 1), last=bool(flags & 2), data=data.hex())
        if flags & ~3:
            raise Bad("reserved flag bits")
        if not data and not flags & 2:
            raise Bad("empty fragment that is not the last")
    elif t in (0x10, 0x11):
        f = {"data": r.take(8).hex()}
    elif name == "OFFLINE":
        f = {"reason": r.uint(1)}
    elif name == "MOVE":
        f = {"deadlineMs": str(r.uint(4)), "host": r.take(r.uint(1)).decode(), "port": r.uint(2)}
    elif name == "CLOSE":
        f = {"code": str(r.varint()), "reason": r.take(r.varint()).decode()}
    if 15 < f.get("channel", 0) < 255:
        raise Bad("reserved channel")
    return name, ack, f, r.at


def parse_ack(r):
    largest, delay, count, first = r.varint(), r.varint(), r.varint(), r.varint()
    lo = largest - first
    ranges = [[str(lo), str(largest)]]
    while lo >= 0 and count > 0:
        hi = lo - r.varint() - 2
        lo, count = hi - r.varint(), count - 1
        ranges.append([str(lo), str(hi)])
    if lo < 0:
        raise Bad("malformed ack ranges")
    return {"largest": str(largest), "delayUs": str(delay), "ranges": ranges}


def parse_message(b):
    """Fields as in the file."""
    r = Reader(b)
    kind, ver, cmd = r.uint(1), r.uint(1), r.uint(2)
    m = {"kind": kind & 0x7F, "ver": ver, "cmd": cmd}
    if m["kind"] > 2:
        raise Bad("unknown kind")
    if m["kind"] == 1:
        m["status"] = r.uint(1)
    if kind & 0x80:
        m["id"] = str(r.varint())
    m["payload"] = b[r.at:].hex()
    return m


def rebuild(largest, low):  # RFC 9000 appendix A.3 with 32 bits
    expected = largest + 1
    pn = expected & ~0xFFFFFFFF | low
    if pn + 2**31 <= expected and pn < 2**62 - 2**32:
        return pn + 2**32
    if pn > expected + 2**31 and pn >= 2**32:
        return pn - 2**32
    return pn


# Data packets: sections 4 and 5 ------------------------------------------------

class Opener:
    """Opens what one direction of a connection brings."""

    def __init__(self, secret, suite, header):
        self.keys, self.header = phases(secret, suite), header
        self.now, self.next = next(self.keys)[1:], next(self.keys)[1:]
        self.before, self.before_until = None, 0
        self.phase, self.lowest, self.largest, self.seen = 0, 0, 0, {0}

    def open(self, ms, packet):
        """(number, frames) or the reason to drop it."""
        if packet[:1] not in (b"\x40", b"\x41"):
            return "type"
        if len(packet) < self.header + 16:
            return "length"
        head, sealed = packet[:self.header], packet[self.header:]
        pn = rebuild(self.largest, int.from_bytes(head[-4:], "big"))
        if pn in self.seen or pn + 1024 <= self.largest:
            return "replay"
        flipped = head[0] & 1 != self.phase & 1
        if not flipped:
            keys = self.now
        elif pn < self.lowest:
            keys = self.before if ms <= self.before_until else None
        else:
            keys = self.next
        if keys is None:
            return "old_key"
        frames = open_(keys[0], nonce_of(keys[1], pn), sealed, head)
        if frames is None:
            return "auth"
        if keys is self.next:
            self.before, self.before_until = self.now, ms + 10_000
            self.now, self.next = self.next, next(self.keys)[1:]
            self.phase, self.lowest = self.phase + 1, pn
        elif keys is self.now:
            self.lowest = min(self.lowest, pn)
        self.seen.add(pn)
        self.largest = max(self.largest, pn)
        return pn, frames


# Handshake: section 3 ------------------------------------------------------------

def client(v, challenge, accept):
    """What a client makes of these two packets: ("accepted", body) or the step and
    reason it stops at. Also its Hello and Confirm."""
    i, out = v["input"], {}
    salt0 = hashlib.sha256(b"DX1" + i["clientKey"].encode()).digest()
    prk0 = extract(salt0, unhex(i["encryptionKey"] + i["encryptionMacKey"] + i["encryptionIV"] + i["sid"]))
    cid0, mac_key = expand(prk0, "dx1 cid", 8), expand(prk0, "dx1 mac", 32)
    mac = lambda b: hmac.new(mac_key, b, hashlib.sha256).digest()[:16]
    private = unhex(i.get("clientX25519Private", ""))
    share = x25519(private, (9).to_bytes(32, "little")) if private else bytes(32)
    nc, x = unhex(i["nc"]), int(bool(private))
    hello = bytes([1, 1, i["offer"], x]) + cid0 + nc + share + bytes(180)
    out.update(salt0=salt0, prk0=prk0, cid0=cid0, macKey=mac_key, hello=hello + mac(hello))

    c = challenge
    server_share = c[56:88]
    for reason, wrong in (("length", len(c) != 104), ("type", c[:1] != b"\2"), ("version", c[1:2] != b"\1"),
                          ("reserved", len(c) > 3 and c[3] & 0xFE), ("share", len(c) > 3 and bool(c[3] & 1) != any(server_share)),
                          ("cid", c[4:12] != cid0), ("mac", mac(c[:88]) != c[88:]), ("nonce", c[12:20] != nc[:8]),
                          ("suite", len(c) > 2 and (c[2] not in (1, 2) or not i["offer"] >> c[2] - 1 & 1)), ("share", len(c) > 3 and c[3] != x)):
        if wrong:
            return ("challenge", reason), out
    shared = x25519(private, server_share) if x else b""
    if x and not any(shared):
        return ("challenge", "secret"), out
    suite, ns, cookie = c[2], c[20:36], c[36:56]
    head = bytes([3, 1, suite, x | i["resume"] << 1, i["offer"], 0, 0, 0]) + cid0 + nc + ns + cookie + share
    th = hashlib.sha256(b"dx1 th" + head + server_share).digest()
    prk = extract(th, prk0 + shared)
    c2s, s2c = expand(prk, "dx1 c2s", 32), expand(prk, "dx1 s2c", 32)
    _, key, iv = next(phases(c2s, suite))
    out.update(sharedSecret=shared, th=th, prk=prk, suite=suite, c2s=c2s, s2c=s2c,
               confirm=head + seal(key, iv, unhex(i["confirmFrames"]), head))

    a = accept
    for reason, wrong in (("length", len(a) < 53), ("type", a[:1] != b"\4"), ("version", a[1:2] != b"\1"), ("cid", a[2:10] != cid0)):
        if wrong:
            return ("accept", reason), out
    _, key, iv = next(phases(s2c, suite))
    body = open_(key, iv, a[10:], a[:10])
    return (("accepted", body) if body else ("accept", "payload")), out


def ended(v, packet):
    """The code a client reads in this packet, or the reason it drops it."""
    e, cid0, mac_key = packet, unhex(v["derived"]["cid0"]), unhex(v["derived"]["macKey"])
    for reason, wrong in (("length", len(e) != 44), ("type", e[:1] != b"\7"), ("version", e[1:2] != b"\1"),
                          ("reserved", e[3:4] != b"\0"), ("cid", e[4:12] != cid0), ("nonce", e[12:28].hex() != v["input"]["nc"]),
                          ("mac", hmac.new(mac_key, e[:28], hashlib.sha256).digest()[:16] != e[28:])):
        if wrong:
            return reason
    return e[2]


def accept_body(i):
    flags, token = int(i["draining"]) | int(i["resumed"]) << 1, i["nodeToken"].encode()
    return unhex(i["scid"]) + struct.pack(">IQHHHBB", i["idleTimeoutMs"], int(i["serverTimeUs"]), i["maxDatagram"],
                                          i["packetsPerSecond"], i["kibPerSecond"], flags, len(token)) + token


def token_of(body):
    size = body[27] if len(body) > 27 else 0
    return body[28:28 + size].decode() if 28 + size <= len(body) else ""


# The file --------------------------------------------------------------------------

failed = checked = 0


def want(what, got, wanted):
    global failed, checked
    checked += 1
    if got != wanted:
        failed += 1
        show = lambda v: v.hex() if isinstance(v, bytes) else v
        print(f"FAIL {what}\n  got  {show(got)}\n  want {show(wanted)}")


def refused(parse, b):
    try:
        parse(b)
    except Bad as e:
        return str(e)


def check_wire(f):
    for c in f["varints"]:
        r = Reader(unhex(c["bytes"]))
        want("varint " + c["bytes"], (str(r.varint()), r.at), (c["value"], len(r.b)))
        want("varint of " + c["value"], varint(int(c["value"])) == r.b, c["shortest"])
    for c in f["packetNumbers"]:
        want(f"packet number {c}", str(rebuild(int(c["largestBefore"]), c["low32"])), c["pn"])
    for c in f["messages"]:
        fields = {k: v for k, v in c.items() if k not in ("name", "bytes")}
        want("message " + c["name"], parse_message(unhex(c["bytes"])), fields)
    for c in f["badMessages"]:
        want("bad message " + c["name"], refused(parse_message, unhex(c["bytes"])) is not None, True)
    for c in f["frames"]:
        b = unhex(c["bytes"])
        want("frame " + c["name"], parse_frame(b), (c["type"], c["acknowledge"], c["fields"], len(b)))
    for c in f["badFrames"]:
        want("bad frame " + c["name"], refused(parse_frame, unhex(c["bytes"])), c["reason"])
    for c in f["probes"]:
        mac = lambda b: hmac.new(unhex(c["key"]), b, hashlib.sha256).digest()[:16]
        probe, reply = b"\5" + unhex(c["nonce"]), b"\6" + unhex(c["nonce"]) + bytes([c["state"]])
        want("probe " + c["name"], (probe + mac(probe) + bytes(7)).hex(), c["probe"])
        want("probe reply " + c["name"], (reply + mac(reply) + bytes(6)).hex(), c["reply"])
    for c in f["records"]:
        b, packets, error = unhex(c["stream"]), [], False
        while len(b) >= 3 and not error:
            n = int.from_bytes(b[:3], "big")
            error = n == 0 or n + 3 > c["maxRecord"]
            if error or len(b) < 3 + n:
                break
            packets, b = packets + [b[3:3 + n].hex()], b[3 + n:]
        want("records " + c["name"], (packets, error), (c["packets"], "error" in c))


def check_handshake(v):
    p, name, d = v["packets"], v["name"] + ": ", v["derived"]
    result, out = client(v, unhex(p["challenge"]), unhex(p["accept"]))
    for k in ("salt0", "prk0", "cid0", "macKey", "th", "prk", "sharedSecret"):
        want(name + k, out[k].hex(), d.get(k, ""))
    want(name + "hello", out["hello"].hex(), p["hello"])
    want(name + "confirm", out["confirm"].hex(), p["confirm"])
    want(name + "suite", out["suite"], d["suite"])
    want(name + "accept", result, ("accepted", unhex(p["acceptBody"])))
    want(name + "accept body", accept_body(v["input"]).hex(), p["acceptBody"])
    for other, token in (("accept", v["input"]["nodeToken"]), ("laterAccept", v["input"]["nodeToken"]), ("olderAccept", ""), ("misfitAccept", "")):
        (step, body), _ = client(v, unhex(p["challenge"]), unhex(p[other]))
        want(name + other, (step, body[:26], token_of(body)), ("accepted", unhex(p["acceptBody"])[:26], token))
    want(name + "ended", ended(v, unhex(p["ended"])), v["input"]["endedCode"])
    for direction in ("c2s", "s2c"):
        for n, (k, made) in enumerate(zip(d[direction], phases(out[direction], d["suite"]))):
            want(f"{name}{direction} phase {n}", tuple(b.hex() for b in made), (k["secret"], k["key"], k["iv"]))
    for r in v["refused"]:
        packets = dict(p, **{r["step"]: r["packet"]})
        if r["step"] in ("challenge", "accept"):  # the others are the server's to refuse
            result, _ = client(v, unhex(packets["challenge"]), unhex(packets["accept"]))
            want(f"{name}{r['step']}, {r['name']}", result, (r["step"], r["reason"]))
        if r["step"] == "ended":
            want(f"{name}ended, {r['name']}", ended(v, unhex(r["packet"])), r["reason"])
    check_data(v, {"client": Opener(out["c2s"], d["suite"], 13), "server": Opener(out["s2c"], d["suite"], 5)})


def check_data(v, openers):
    for n, c in enumerate(v["data"]):
        what, o = f"{v['name']}: data {n}", openers[c["from"]]
        want(what + " largest", str(o.largest), c["largestBefore"])
        got = o.open(c["atMs"], unhex(c["packet"]))
        want(what, got, c["refused"] if "refused" in c else (int(c["pn"]), unhex(c["frames"])))
        if "refused" not in c:
            k = v["derived"]["c2s" if c["from"] == "client" else "s2c"][c["phase"]]
            want(what + " nonce", nonce_of(unhex(k["iv"]), int(c["pn"])).hex(), c["nonce"])
            head = bytes([0x40 | c["phase"] & 1]) + (unhex(v["input"]["scid"]) if c["from"] == "client" else b"") + u32(int(c["pn"]))
            want(what + " sealed", head + seal(unhex(k["key"]), unhex(c["nonce"]), unhex(c["frames"]), head), unhex(c["packet"]))


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "protocol-vectors.json")
    with open(path, encoding="utf-8") as f:
        vectors = json.load(f)
    check_wire(vectors)
    for v in vectors["handshakes"]:
        check_handshake(v)
    print(f"{checked} checks, {failed} failed")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
