"""A few dozen requests of the load client aiperf (its path in LINGQU_AIPERF) against the server at LINGQU_HTTP."""

import glob
import json
import os
import subprocess
import tempfile

REQUESTS = 32

with tempfile.TemporaryDirectory() as folder:
    run = subprocess.run(
        [
            os.environ["LINGQU_AIPERF"], "profile",
            "--model", "lingqu-default", "--url", os.environ["LINGQU_HTTP"],
            "--endpoint-type", "chat", "--streaming", "--use-server-token-count",
            "--tokenizer", os.path.abspath("models/default"),
            "--concurrency", "8", "--request-count", str(REQUESTS), "--random-seed", "1",
            "--prompt-input-tokens-mean", "64", "--prompt-output-tokens-mean", "16",
            "--extra-inputs", "ignore_eos:true", "--no-gpu-telemetry", "--ui", "none",
            "--output-artifact-dir", folder,
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    [report] = glob.glob(f"{folder}/**/profile_export_aiperf.json", recursive=True)
    figures = json.load(open(report))
    assert figures["request_count"]["avg"] == REQUESTS, figures["request_count"]
    assert not figures.get("error_request_count"), figures["error_request_count"]
    first = figures["time_to_first_token"]
    print(f"aiperf: {REQUESTS} requests, time to first token {first['p50']:.0f} {first['unit']} at the median: ok")
