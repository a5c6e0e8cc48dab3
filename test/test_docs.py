#!/usr/bin/env python3
"""Runs every command of the README and of dev/docs, page by page, each page from a folder with only the project in it.

    BUILD=build/cpu test/test_docs.py

Blocks marked `sh` are run line by line. Training is cut to a few steps, `make train` to a small corpus. For commands
that need a GPU, a cluster or the network, the options are parsed and the files must exist: launchers are left out and
their program is run alone; slow targets of make are only planned (make -n). Commands within the text must name
programs, targets and options that exist.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), ".."))
BUILD = os.path.realpath(os.path.join(ROOT, os.environ.get("BUILD", "build/cpu")))
PROGRAMS = ["train_gpt", "data/tokenize", "data/write_stories"]
# Training is cut by options that come last; a resumed run does one more step than it has done.
WRAPPER = """#!/bin/bash
case " $* " in *" --run "*) ;; *) set -- --run "runs/unnamed_$$" "$@" ;; esac
case " $* " in
*" --sample "* | *" --plan "* | *" -h "* | *" --help "*) exec "{program}" "$@" --sample-tokens 4 ;;
*" --resume "*) exec "{program}" "$@" --steps 4 ;;
*) exec "{program}" "$@" --processes 0 --steps 3 --batch 2 --accumulate 1 --warmup 0 --sample-tokens 4 --validation-batches 2 --num-layers 2 --channels 64 ;;
esac
"""
SMALL_MAKE = "NO_LINKS=1 TRAIN_GPT=./train_gpt STORIES_BYTES=150k STORIES_VOCABULARY=400"
passed, failed, skipped = 0, 0, 0


def check(holds, what):
    global passed, failed
    if holds:
        passed += 1
    else:
        failed += 1
        print("FAILED: " + what, flush=True)


def skip(what, why):
    global skipped
    skipped += 1
    print(f"skipped: {what} ({why})")


def make_folder():
    """Creates a folder with links to the project, wrapped programs, and a user's three books."""
    folder = tempfile.mkdtemp(prefix="docs_")
    for name in os.listdir(ROOT):
        if name not in (".git", "build", "runs", "datasets", "train_gpt", "data"):
            os.symlink(os.path.join(ROOT, name), os.path.join(folder, name))
    os.mkdir(os.path.join(folder, "data"))
    for name in os.listdir(os.path.join(ROOT, "data")):
        if "data/" + name not in PROGRAMS:
            os.symlink(os.path.join(ROOT, "data", name), os.path.join(folder, "data", name))
    os.symlink(os.path.join(ROOT, "build"), os.path.join(folder, "build"))
    for name in PROGRAMS[1:]:
        os.symlink(os.path.join(BUILD, name), os.path.join(folder, name))
    with open(os.path.join(folder, "train_gpt"), "w") as file:
        file.write(WRAPPER.format(program=os.path.join(BUILD, "train_gpt")))
    os.chmod(os.path.join(folder, "train_gpt"), 0o755)
    os.mkdir(os.path.join(folder, "books"))
    for seed in "123":
        subprocess.run([os.path.join(BUILD, "data/write_stories"), "--seed", seed, "--train-bytes", "120k", "--validation-stories", "5",
                        "--out", f"{folder}/stories{seed}"], check=True, stdout=subprocess.DEVNULL)
        shutil.move(f"{folder}/stories{seed}/train.txt", f"{folder}/books/{seed}.txt")
        shutil.rmtree(f"{folder}/stories{seed}")
    return folder


def run(folder, command):
    environment = dict(os.environ, MAKEFLAGS=SMALL_MAKE, PACKAGES_CHECKED="yes", OMP_NUM_THREADS="2")
    environment.pop("MAKELEVEL", None)
    if command.startswith("make -n"):
        environment.pop("PACKAGES_CHECKED")
    result = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors="replace")
    return result.returncode, result.stdout[-600:]


def expect(folder, page, command, what=None):
    status, output = run(folder, command)
    check(status == 0, f"{page}: status {status} from: {what or command}\n{output}")


def find_checkpoints(folder, command):
    """Training was cut: the newest existing checkpoint replaces the one that a page names."""
    for run_folder, step in re.findall(r"(runs/[\w.-]+)/checkpoints/(step_\d+)", command):
        checkpoints = os.path.join(folder, run_folder, "checkpoints")
        if os.path.isdir(checkpoints) and not os.path.exists(os.path.join(checkpoints, step)):
            os.symlink(sorted(os.listdir(checkpoints))[-1], os.path.join(checkpoints, step))


def has_nvcc():
    return subprocess.run([os.path.join(ROOT, "dev/find_cuda.sh"), "nvcc"], capture_output=True, text=True).stdout.strip() != ""


def needs_nvcc(command):
    return "DEVICE=cuda" in command or command.split()[-1] in ("kernel_resources", "cuda_all_architectures")


def run_make(folder, page, command):
    if needs_nvcc(command) and not has_nvcc():
        skip(command, "there is no nvcc")
    elif command.split()[1:] in (["train"], ["help"]):
        expect(folder, page, command)
    else:
        expect(folder, page, "make -n " + command[5:], command)


def run_command(folder, page, command):
    command = re.sub(r"\s+#\s.*", "", command).strip()
    word = command.split()[0]
    find_checkpoints(folder, command)
    if word == "make":
        run_make(folder, page, command)
    elif word in ("torchrun", "srun", "mpirun"):
        expect(folder, page, command[command.index("./train_gpt"):], command)
    elif word == "data/download.sh":
        with open(os.path.join(folder, word)) as file:
            check(re.search(rf"^#     {command.split()[1]}\b", file.read(), re.M), f"{page}: not a data set of data/download.sh: {command}")
    elif word == "python3":
        expect(folder, page, "python3 -m py_compile " + command.split()[1], command)
    else:
        expect(folder, page, command)


def commands_of(text):
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def known_options():
    names = set()
    for words in (["train_gpt"], ["data/write_stories"], *(["data/tokenize", c] for c in ("train", "encode", "decode", "inspect"))):
        text = subprocess.run([os.path.join(BUILD, words[0]), *words[1:], "--help"], capture_output=True, text=True).stdout
        names |= {"--" + name for name in re.findall(r"^ +--(?:\[no-\])?([a-z][a-z0-9-]*)", text, re.M)}
    return names | {"--help", "--version"}


def check_span(folder, page, span, options):
    """Checks a command, option or file within the text."""
    words = [word for word in span.split() if not re.match(r"^[A-Z_0-9]+=", word)]
    if not words:
        return
    if words[0] == "make" and len(words) > 1 and needs_nvcc(span) and not has_nvcc():
        return
    if words[0] == "make" and len(words) > 1:
        if "..." not in span and not span.endswith("="):
            expect(folder, page, "make -n " + span.split(" ", 1)[1] if span.startswith("make") else span, span)
    elif words[0] in ("./train_gpt", "data/tokenize") or words[0].startswith("--"):
        for word in words:
            if re.match(r"^--[a-z]", word) and words[0] != "mpirun":
                name = word.split("=")[0]
                check(name in options or name.replace("--no-", "--") in options, f"{page}: there is no option {word} (in `{span}`)")
    name = next((word for word in words if re.match(r"^(dev|test|data|attention|layers)/[\w./]+$", word)), None)
    if name:
        check(any(os.path.exists(os.path.join(folder, name + end)) for end in ("", ".c", ".cu")), f"{page}: there is no {name} (in `{span}`)")


def check_links(page, text):
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        path = os.path.join(os.path.dirname(os.path.join(ROOT, page)), target)
        check(os.path.exists(path), f"{page}: the link to {target} leads nowhere")


# Options of other programs, and examples of options that do not exist here.
FOREIGN = {"--lr", "--save_pretrained", "--no-python", "--nproc-per-node", "--signal", "--mpi", "--long", "--seed", "--rounds", "--variants",
           "--list", "--emulated", "--out", "--name", "--no-name"}


def check_page(page, options):
    with open(os.path.join(ROOT, page)) as file:
        text = file.read()
    folder = make_folder()
    try:
        if ("datasets/stories" in text or "runs/stories" in text) and not any(c.startswith("make train") for c in commands_of(text)):
            expect(folder, page, "make train")  # which the README tells the reader to do first
        if "my/tokenizer.json" in text and "tokenize train" not in text:
            expect(folder, page, "data/tokenize train --input 'books/*.txt' --out my/tokenizer.json")
        for command in commands_of(text):
            run_command(folder, page, command)
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
            check_span(folder, page, span.replace("\\|", "|"), options | FOREIGN)
        check_links(page, text)
    finally:
        shutil.rmtree(folder)


def main():
    options = known_options()
    pages = ["README.md"] + sorted("dev/docs/" + name for name in os.listdir(os.path.join(ROOT, "dev/docs")))
    for page in sys.argv[1:] or pages:
        check_page(page, options)
    size = os.path.getsize(os.path.join(ROOT, "README.md"))
    check(6000 <= size <= 8192, f"the README has {size} bytes, 6 to 8 KB were planned")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed > 0


sys.exit(main())
