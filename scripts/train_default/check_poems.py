"""Asks lingqu for 50 seeded quatrains and some statutes; says how many quatrains have lines of equal length."""

import argparse
import re
import subprocess

THEMES = ["秋天", "春天", "月亮", "雪", "梅花", "思乡", "送别", "边塞", "江河", "田园"]


def ask(binary, model, prompt, seed, max_tokens=120):
    command = [binary, "generate", "--chat", "--prompt", prompt, "--seed", str(seed), "--max-tokens", str(max_tokens)]
    command += ["--model", model] if model else []
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def lengths(poem):
    return [len(s) for s in re.split("[，。？！；：、\n]+", poem) if s]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", nargs="?", default="target/release/lingqu")
    parser.add_argument("--model", help="default: the embedded model")
    args = parser.parse_args()
    equal = right = named = 0
    for seed in range(50):
        theme, (form, size) = THEMES[seed % 10], [("五言绝句", 5), ("七言绝句", 7)][seed // 10 % 2]
        poem = ask(args.binary, args.model, f"写一首关于{theme}的{form}", seed)
        counts = lengths(poem)
        equal += len(counts) >= 2 and len(set(counts)) == 1
        right += counts == [size] * 4
        print(f"[{seed} {theme} {form} {counts}]\n{poem}")
    for seed, prompt in enumerate(["第一条", "第十条", "《公共图书馆法》第一条", "续写：第三条"]):
        print(f"[{prompt}]\n{ask(args.binary, args.model, prompt, seed, 200)}")
    print(f"lines of equal length: {equal} of 50; four lines of the length asked for: {right} of 50")


if __name__ == "__main__":
    main()
