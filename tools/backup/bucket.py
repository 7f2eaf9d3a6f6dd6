#!/usr/bin/env python3
"""bucket.py HOST:PORT DIRECTORY KEY SECRET: as much of S3 as archives need, for tests: objects are files of DIRECTORY/BUCKET. Each request's
signature (version 4, in the address) is computed anew from the secret. With DIRECTORY/away nobody is served (503)."""
import hashlib, hmac, http.server, os, socketserver, sys, urllib.parse
from xml.sax.saxutils import escape

address, root, KEY, SECRET = sys.argv[1:5]
parts = {}


def quoted(text, safe="-_.~"):
    return urllib.parse.quote(text, safe=safe)


def signature(method, path, query, headers):
    scope = query["X-Amz-Credential"].split("/", 1)[1]
    rest = "&".join(f"{quoted(k)}={quoted(v)}" for k, v in sorted(query.items()) if k != "X-Amz-Signature")
    signed = query["X-Amz-SignedHeaders"].split(";")
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in signed)
    request = "\n".join([method, path, rest, lines, ";".join(signed), "UNSIGNED-PAYLOAD"])
    text = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + SECRET).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code):
        self.say(status, f"<Error><Code>{code}</Code></Error>".encode())

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if os.path.exists(f"{root}/away"):
            return self.error(503, "SlowDown")
        if not query.get("X-Amz-Credential", "").startswith(KEY + "/"):
            return self.error(403, "InvalidAccessKeyId")
        if query.get("X-Amz-Signature") != signature(self.command, path, query, self.headers):
            return self.error(403, "SignatureDoesNotMatch")
        names = urllib.parse.unquote(path).strip("/").split("/")
        if ".." in names or not os.path.isdir(f"{root}/{names[0]}"):
            return self.error(404, "NoSuchBucket")
        file, upload = "/".join([root, *names]), query.get("uploadId")
        if self.command == "GET" and len(names) == 1:
            return self.list(f"{root}/{names[0]}", query)
        if self.command in ("GET", "HEAD"):
            if not os.path.isfile(file):
                return self.error(404, "NoSuchKey")
            return self.say(200, open(file, "rb").read())
        if self.command == "POST" and upload is None:
            upload = str(len(parts))
            parts[upload] = {}
            return self.say(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode())
        if self.command == "PUT" and upload is not None:
            parts[upload][int(query["partNumber"])] = body
            return self.say(200, ETag=f'"{query["partNumber"]}"')
        if self.command == "DELETE":
            if upload is not None:
                parts.pop(upload, None)
            elif os.path.isfile(file):
                os.remove(file)
            return self.say(204)
        if self.command == "POST":
            body = b"".join(body for _, body in sorted(parts.pop(upload).items()))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as to:
            to.write(body)
        self.say(200, b"<CompleteMultipartUploadResult/>" if self.command == "POST" else b"")

    def list(self, bucket, query):
        found = []
        for at, _, files in os.walk(bucket):
            found += [os.path.relpath(os.path.join(at, name), bucket) for name in files]
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        found = sorted(name for name in found if name.startswith(prefix) and name > after)
        page, more = found[:1000], found[1000:]
        items = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag>"
            f"<Size>{os.path.getsize(os.path.join(bucket, name))}</Size></Contents>"
            for name in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self.say(200, f"<ListBucketResult>{items}{token}</ListBucketResult>".encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


host, port = address.rsplit(":", 1)
Server((host, int(port)), Handler).serve_forever()
