"""Exit code 0 if $HEALTH_URL answers 2xx, and where it is unset. Small on purpose: it runs every few seconds."""

import os
import sys
import urllib.request

url = os.environ.get("HEALTH_URL")
try:
    if url:
        urllib.request.urlopen(url, timeout=4).close()
except OSError as error:
    sys.exit(f"{url}: {error}")
