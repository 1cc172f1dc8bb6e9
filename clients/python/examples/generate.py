"""Streams a generation: python generate.py REPO PROMPT. Exits with 1 and one line when the node refuses."""

import sys

import cairn


def main() -> int:
    repo, prompt = sys.argv[1:3]
    try:
        with cairn.connect() as node, node.generate(repo, prompt, max_tokens=128) as words:
            for token in words:
                print(token.text, end="", flush=True)
            print(f"\n{words.result.tokens_per_s:.1f} tokens/s on {len(words.result.stages)} nodes", file=sys.stderr)
    except cairn.CairnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
