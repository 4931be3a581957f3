"""Python's HTTP, TLS and gRPC clients: client.py MODE HOST [PORT]."""

import socket
import sys

mode, host = sys.argv[1], sys.argv[2]
port = int(sys.argv[3]) if len(sys.argv) > 3 else 0

if mode == "lookup":
    socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
elif mode == "http.client":
    import http.client

    connection = http.client.HTTPConnection(host, port)
    connection.request("GET", "/reviews/0")
    connection.getresponse().read()
    connection.request("POST", "/ratings", body=b'{"rating": 5}', headers={"Content-Type": "application/json"})
    connection.getresponse().read()
elif mode == "requests":
    import requests

    requests.get(f"http://{host}:{port}/reviews/0", params={"q": "1"})
elif mode == "urllib3":
    import urllib3

    urllib3.request("GET", f"http://{host}:{port}/reviews/0")
elif mode == "ssl":
    import ssl

    with socket.create_connection((host, port)) as stream:
        ssl.create_default_context().wrap_socket(stream, server_hostname=host)
elif mode == "httpx":
    import httpx

    with httpx.Client(http1=False, http2=True) as client:
        client.get(f"http://{host}:{port}/reviews/0")
elif mode == "grpc":
    import grpc

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        call = channel.unary_unary("/bookinfo.Reviews/Get")
        for _ in range(2):
            try:
                call(b"", timeout=5)
            except grpc.RpcError:
                pass  # The capturing server says OK without a message.
