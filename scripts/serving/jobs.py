"""What servers are asked: each job is one run of the load generator against a fresh server."""

import dataclasses

JOBS = ["fixed", "hotline", "draft", "policy", "policy-cold", "open"]
# Beside a document: a question and its answer.
BESIDE_DOCUMENT = 512  # tokens


@dataclasses.dataclass
class Job:
    name: str
    text: str
    context: int
    arguments: list
    has_document: bool = False


def chosen(args):
    """The jobs that were asked for; `open` is one for each rate."""
    wanted = args.jobs.split(",")
    timed = ["--duration", args.duration, "--warm-up", args.warm_up]
    users = ["--users", args.users]
    documents = args.document + BESIDE_DOCUMENT
    closed = f"{args.users} users who ask again at once"
    found = {
        "fixed": Job("fixed", f"{closed}; 128 random tokens in, 64 out", args.context,
                     ["--workload", "fixed", "--prompt-tokens", 128, "--output-tokens", 64, *users, *timed]),
        "hotline": Job("hotline", f"{closed}; calls to a hotline, one short rule for all, 48 to 80 tokens out",
                       args.context, ["--workload", "hotline", *users, *timed]),
        "draft": Job("draft", f"{closed}; a short order, 512 to 1024 tokens out", args.context,
                     ["--workload", "draft", *users, *timed]),
        "policy": Job("policy", f"{closed}; questions over one document of {args.document} tokens, 96 to 128 out; "
                      "measured when all have asked before", documents,
                      ["--workload", "policy", "--document-tokens", args.document, *users,
                       # Every slot of a peer has computed the document before the window opens.
                       "--duration", args.duration, "--warm-up", 4 * args.warm_up], True),
        "policy-cold": Job("policy-cold", f"{args.users} questions at once over a document of {args.document} tokens "
                           "that the server has never seen", documents,
                           ["--workload", "policy", "--document-tokens", args.document, *users,
                            "--requests", args.users], True),
    }  # fmt: skip
    result = [found[name] for name in wanted if name in found]
    if "open" in wanted:
        for rate in args.rates.split(","):
            text = f"open loop, {rate} requests/s, lengths like Azure's conversations of 2023"
            arguments = ["--workload", "azure", "--rate", rate, *timed]
            result.append(Job(f"open-{rate}", text, args.context, arguments))
    return result
