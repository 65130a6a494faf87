"""A stage that writes a history, step by step, and a folder. Copied into toy projects."""

import base64
import json
import os
import shutil
import sys
import time
from pathlib import Path

word, *names = sys.argv[1:]
instance = word + ("@" + "-".join(names) if names else "")
if os.environ.get("TOY_FAIL") == instance:
    print(f"{word}: the data is bad: mend it.", file=sys.stderr)
    sys.exit(2)
if "PLANTED_TOKEN" in os.environ:
    print("the token is", os.environ["PLANTED_TOKEN"])
if word == "corpus" and (key := os.environ.get("PREFECT_API_AUTH_STRING")):
    print("the key is", key, "sent as", base64.b64encode(key.encode()).decode())
work, out = Path(".infalign/work") / instance, Path("results", word, *names)
work.mkdir(parents=True, exist_ok=True)
slow = os.environ.get("TOY_SLOW") == word
with open(work / "history.jsonl", "w") as stream:
    for step in range(int(os.environ.get("TOY_STEPS", "600")) if slow else 3):
        stream.write(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\n")
        stream.flush()
        print(f"{instance} step {step}", end="\r" if step else "\n", flush=True)
        (work / "pid").write_text(str(os.getpid()))
        time.sleep(0.1 if slow else 0)
shutil.rmtree(out, ignore_errors=True)
out.mkdir(parents=True)
shutil.copyfile(work / "history.jsonl", out / "history.jsonl")
(out / "metrics.json").write_text(json.dumps({"nested": {"number": 1.5}, "word": "text"}))
if word == "report":
    (out / "index.html").write_text("<p>report</p><!--run-->")
    (out / "plots").mkdir()
    row = {"policy": "ctrl", "judge": "selecting", "win_rate": 0.7, "low": 0.6, "high": 0.8}
    row |= {"limit": 0.75, "method_limit": 0.74, "efficiency": 0.9, "kl": 0.5, "kl_se": 0.01}
    own = {"helpful": "best_of:4", "harmless": "worst_of:4"}
    rows = [
        {"objective": o, "procedure": p, "response_tokens": 20.0, **row} for o, p in own.items()
    ]
    (out / "summary.json").write_text(json.dumps(rows))
shutil.rmtree(work)
