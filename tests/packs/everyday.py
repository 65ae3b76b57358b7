"""What an agent does all day: command lines, files and connections, none of which is a finding.

Commands are as their programs get them; `line` is what the shell that starts them was told.
"""

from __future__ import annotations

from tests.packs.story import CLAUDE, HOME, NODE, NPM, SHELL, Story

PROJECT = f"{HOME}/project"

COMMANDS = """\
/usr/bin/git status --short
/usr/bin/git -C /home/dev/project log --oneline -20 --force-color
/usr/bin/git clone https://github.com/org/app.git
/usr/bin/git fetch --all --prune --tags --force
/usr/bin/git checkout -b feature/maintenance
/usr/bin/git switch main
/usr/bin/git push -u origin feature/maintenance
/usr/bin/git push origin HEAD:refs/heads/claude/fix-1
/usr/bin/git push --tags
/usr/bin/git commit -S -m Reset\\ --hard\\ is\\ documented
/usr/bin/git commit --amend --no-edit
/usr/bin/git rebase origin/main
/usr/bin/git reset HEAD~1
/usr/bin/git stash push -m wip
/usr/bin/git clean -n
/usr/bin/git worktree add --force ../wt main
/usr/bin/git config user.email dev@example.org
/usr/bin/git config --get remote.origin.url
/usr/bin/git submodule update --init --recursive --force
/usr/bin/git diff --stat
/usr/bin/git grep -n credential
/usr/bin/git rm -rf --cached dist
/usr/bin/gh pr create --fill
/usr/bin/gh api repos/org/app/pulls
/usr/bin/gh auth status
/usr/bin/rm -rf node_modules dist build .next
/usr/bin/rm -rf /home/dev/project/target
/usr/bin/rm -rf /tmp/tmp.x1 /var/tmp/y
/usr/bin/rm -f /home/dev/.ssh/known_hosts.old
/usr/bin/find . -name *.pyc -delete
/usr/bin/find . -name node_modules -type d -prune -exec rm -rf {} +
/usr/bin/find /home/dev/project -type f -name *.ts
/usr/bin/grep -rn password src
/usr/bin/grep -rE (api_key|token) /home/dev/project/src
/usr/bin/rg --hidden SECRET .
/usr/bin/chmod +x scripts/build.sh
/usr/bin/chmod -R u+rwX,go-w dist
/usr/bin/chmod 600 key.pem
/usr/bin/chown -R dev:dev node_modules
/usr/bin/curl -fsSL -o install.sh https://example.org/install.sh
/usr/bin/curl -s http://localhost:3000/health
/usr/bin/curl -s http://127.0.0.1:8080/api -d @payload.json
/usr/bin/curl -H Authorization:\\ Bearer\\ x https://api.github.com/user
/usr/bin/curl http://172.17.0.2:9200/_cluster/health
/usr/bin/wget -q https://nodejs.org/dist/index.json
/usr/bin/node node_modules/.bin/prisma migrate dev
/usr/bin/node node_modules/.bin/jest --runInBand
/usr/bin/node -e console.log(process.version)
/usr/bin/python3.11 -m pytest -q
/usr/bin/python3.11 -m pip install -e .
/usr/bin/python3.11 -m venv .venv
/usr/bin/python3.11 -c import\\ socket;print(socket.gethostname())
/usr/bin/python3.11 manage.py migrate
/usr/bin/python3.11 -m http.server 8000
/usr/bin/make -j2 install
/usr/bin/gcc -O2 -c main.c -o main.o
/usr/bin/x86_64-linux-gnu-ld.bfd -o a.out main.o
/home/dev/.cargo/bin/cargo build --release
/home/dev/.cargo/bin/cargo test
/usr/bin/go test ./...
/usr/local/go/bin/go build -o app
/usr/bin/docker --version
/usr/bin/docker compose config
/usr/bin/kubectl get pods -n prod
/usr/bin/kubectl logs deploy/app --all-containers
/usr/bin/terraform plan -out=tf.plan
/usr/bin/terraform fmt -recursive
/usr/bin/terraform validate
/usr/bin/aws sts get-caller-identity
/usr/bin/aws s3 ls
/usr/lib/postgresql/15/bin/psql -c SELECT\\ 1
/usr/lib/postgresql/15/bin/psql -f schema.sql app_test
/usr/bin/sqlite3 app.db .schema
/usr/bin/redis-cli ping
/usr/bin/ssh-agent -s
/usr/bin/ssh-add -l
/usr/bin/ssh-keygen -t ed25519 -f /tmp/x/key -N x
/usr/bin/ssh-keygen -Y sign -n git -f /home/dev/.ssh/id_ed25519.pub /tmp/x
/usr/bin/ssh -T git@github.com
/usr/bin/gpg --status-fd=2 -bsau 0A1B
/usr/bin/gpg-agent --server
/usr/bin/gpgconf --list-dirs agent-socket
/usr/bin/ps aux
/usr/bin/pgrep -f node\\ server.js
/usr/bin/kill 4242
/usr/bin/kill -9 4242
/usr/bin/pkill -f vite
/usr/bin/systemctl status postgresql
/usr/bin/systemctl --user list-units
/usr/bin/env
/usr/bin/env NODE_ENV=test npm test
/usr/bin/printenv HOME
/usr/bin/tmux display-message -p #S
/usr/bin/tar xzf release.tar.gz
/usr/bin/cp -r src dst
/usr/bin/cp .env.example .env
/usr/bin/mv a b
/usr/bin/dd if=/dev/urandom of=test.bin bs=1K count=4
/usr/sbin/mkfs.ext4 -F disk.img
/usr/bin/base64 -d x.b64
/usr/bin/openssl x509 -in cert.pem -noout -text
/usr/bin/openssl rand -hex 32
/usr/bin/nc.openbsd -z localhost 5432
/usr/bin/socat TCP-LISTEN:8080,fork TCP:localhost:80
/usr/bin/dig +short example.org
/usr/bin/ping -c1 packages.example.org
/usr/bin/gdb -batch -ex run ./a.out
/usr/bin/strace -f ls
/usr/bin/crontab -l
/usr/bin/ls -la /proc/self/fd
/usr/bin/readlink /proc/self/exe
/usr/bin/dropdb app_test
/usr/bin/shellcheck scripts/reboot.sh
/usr/bin/journalctl -u app -n 50
/usr/bin/apt-cache policy jq
/home/dev/.local/share/claude/versions/2.1.0/rg --files
/usr/bin/vim -c wq notes.md
/usr/bin/code --version
/usr/bin/less README.md
/usr/bin/jq .scripts package.json
"""

LINES = (
    # What node-gyp has make do.
    ("LD_LIBRARY_PATH=/tmp/x/lib.host; export LD_LIBRARY_PATH; g++ -c x", ("/usr/bin/g++", "-c")),
    ("curl -s https://example.org/x.json | python3 -m json.tool", ("/usr/bin/python3.11", "-m")),
    ("curl -s https://example.org/x | grep token", ("/usr/bin/grep", "token")),
    ("env | grep PATH", ("/usr/bin/grep", "PATH")),
    ("cat package.json | jq .name", ("/usr/bin/jq", ".name")),
    ("git log --oneline | head -5", ("/usr/bin/head", "-5")),
    ("V=$(curl -s example.org/version); sh -c 'make -j2'", ("/usr/bin/dash", "-c", "make -j2")),
    ("cat key.pem | openssl x509 -noout", ("/usr/bin/openssl", "x509", "-noout")),
    ("echo aGk= | base64 -d", ("/usr/bin/base64", "-d")),
    ("cat src/env.ts | grep key", ("/usr/bin/grep", "key")),
    ("source ~/.claude/shell-snapshots/x.sh && eval 'npm test' < /dev/null", (NODE, NPM, "test")),
)

READ = f"""\
{PROJECT}/package.json
{PROJECT}/.env.example
{PROJECT}/.git/config
{PROJECT}/tests/fixtures/.ssh/id_rsa
{PROJECT}/.claude/settings.json
{HOME}/.gitconfig
{HOME}/.npmrc
{HOME}/.bashrc
{HOME}/.profile
{HOME}/.ssh/known_hosts
{HOME}/.ssh/config
{HOME}/.ssh/id_ed25519.pub
{HOME}/.aws/config
{HOME}/.config/gh/config.yml
{HOME}/.claude/settings.json
{HOME}/.claude/.credentials.json
{HOME}/.claude/projects/-home-dev/0a1b.jsonl
{HOME}/.cache/pip/x
{HOME}/.cargo/registry/index
/proc/meminfo
/proc/4242/stat
/proc/4242/cmdline
/proc/self/maps
/etc/passwd
/etc/hosts
/etc/ssl/certs/ca-certificates.crt
/sys/fs/cgroup/memory.max
/usr/share/agentwatch/rules/secrets.yaml
"""

CHANGE = f"""\
{PROJECT}/src/index.ts
{PROJECT}/node_modules/x/CLAUDE.md
{PROJECT}/.git/index.lock
{PROJECT}/.git/COMMIT_EDITMSG
{PROJECT}/.env
{PROJECT}/Dockerfile
{PROJECT}/terraform/main.tf
{PROJECT}/.venv/lib/python3.11/site-packages/six.py
{HOME}/.claude/projects/-home-dev/0a1b.jsonl
{HOME}/.claude/todos/1.json
{HOME}/.cache/pip/http/x
{HOME}/.npm/_cacache/index-v5/x
{HOME}/.npm/_logs/x.log
{HOME}/.cargo/registry/cache/x.crate
{HOME}/.bash_history
{HOME}/.local/share/claude/versions/2.1.1
{HOME}/.local/bin/claude
/tmp/pytest-of-dev/pytest-0/test_x0/a
/dev/null
/dev/tty
/dev/shm/x
/proc/self/oom_score_adj
"""

CONNECT = (
    ("160.79.104.10", 443),
    ("140.82.121.3", 443),
    ("140.82.121.3", 22),
    ("127.0.0.1", 3000),
    ("127.0.0.1", 5432),
    ("::1", 8080),
    ("192.168.1.5", 443),
)
SOCKETS = (
    f"{HOME}/.gnupg/S.gpg-agent",
    "/run/user/1000/gnupg/S.gpg-agent",
    "/tmp/ssh-XXXXXX/agent.42",
    "/run/user/1000/bus",
    "/run/nscd/socket",
    "@/tmp/.X11-unix/X0",
    "/var/run/postgresql/.s.PGSQL.5432",
)


def commands(story: Story) -> None:
    """Each through a shell, as agents start them."""
    for command in COMMANDS.splitlines():
        path, *args = command.replace("\\ ", "\x00").split()
        words = [argument.replace("\x00", " ") for argument in args]
        with story.run(SHELL, "-c", command):
            story.do(path, *words)


def pipelines(story: Story) -> None:
    for line, program in LINES:
        story.sh(line, program)


def files(story: Story) -> None:
    """By the agent, by node and by git."""
    for path in READ.splitlines():
        story.read(path)
    for path in CHANGE.splitlines():
        story.write(path)
    with story.run(NODE, "server.js"):
        for path in READ.splitlines():
            if "credentials" not in path:
                story.read(path)
        for path in CHANGE.splitlines():
            story.write(path)
    with story.run("/usr/bin/git", "checkout", "main"):
        for name in (".github/workflows/ci.yml", "CLAUDE.md", ".mcp.json", ".vscode/tasks.json"):
            story.write(f"{PROJECT}/{name}")
        story.write(f"{PROJECT}/.git/hooks/pre-commit.sample")
    with story.run("/usr/bin/ssh", "git@github.com"):
        story.read(f"{HOME}/.ssh/id_ed25519")
    with story.run("/usr/bin/gpg-agent", "--daemon"):
        story.read(f"{HOME}/.gnupg/private-keys-v1.d/0A1B.key")
    with story.run("/usr/bin/perl", "/usr/bin/psql", "--version"):
        story.read("/etc/shadow")
    with story.run("/usr/bin/gh", "pr", "list"):
        story.read(f"{HOME}/.config/gh/hosts.yml")


def network(story: Story) -> None:
    with story.run(NODE, "server.js"):
        for addr, port in CONNECT:
            story.connect(addr, port)
        for socket in SOCKETS:
            story.connect("", unix=socket)


def installation(story: Story) -> None:
    """npm ci with a native addon, pip, and the agent's own update by npm."""
    with story.run(NODE, NPM, "ci"):
        story.read(f"{HOME}/.npmrc")
        with story.run("/usr/bin/dash", "-c", "node-gyp rebuild"):
            story.do(NODE, "/usr/lib/node_modules/npm/node_modules/.bin/node-gyp", "rebuild")
            story.do("/usr/bin/python3.11", "gyp_main.py")
            story.do("/usr/bin/make", "BUILDTYPE=Release")
        git = story.run("/usr/bin/git", "ls-remote", "ssh://git@github.com/org/x.git")
        with git, story.run("/usr/bin/ssh", "git@github.com", "git-upload-pack"):
            story.read(f"{HOME}/.ssh/id_ed25519")
            story.read(f"{HOME}/.ssh/known_hosts")
    with story.run("/usr/bin/python3.11", "-m", "pip", "install", "-e", "."):
        story.do("/usr/bin/python3.11", "/tmp/pip-x/setup.py")
        story.write(f"{PROJECT}/.venv/lib/python3.11/site-packages/__editable__.app.pth")
    update = story.run(NODE, NPM, "install", "-g", "@anthropic-ai/claude-code")
    with update, story.run(NODE, "install.cjs"):
        story.write(f"{HOME}/.npm-global/bin/claude")
    story.do(CLAUDE, "--version")


WORK = {
    "commands": commands,
    "pipelines": pipelines,
    "files": files,
    "network": network,
    "installation": installation,
}
