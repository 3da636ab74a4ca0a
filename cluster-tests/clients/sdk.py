"""The Python SDK, told what to call: a line of JSON in, a line of JSON out."""

import json
import os
import sys

import pusher

client = pusher.Pusher(**json.loads(os.environ["PUSHER_OPTIONS"]))
for line in sys.stdin:
    call, arguments = json.loads(line)
    try:
        answer = {"ok": getattr(client, call)(*arguments)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
