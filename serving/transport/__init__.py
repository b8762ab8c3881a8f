"""Bytes on sockets: listening, HTTP/1.1, and gRPC over HTTP/2. What the bytes mean is `serving.protocol`'s business."""
