"""A locked set again, with the sha256 of each file that Python 3.11 on x86-64 Linux gets.

`make hashes` has pip report what it would install, and hands the report over.
"""

import json
import re
import sys

lines = []
for item in json.load(sys.stdin)["install"]:
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
    lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{sha256}")
print("\n".join(sorted(lines)))
