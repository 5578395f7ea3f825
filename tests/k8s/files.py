"""The configuration of a one-node cluster: what its programs read, and with which flags they start."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

NODE, ADDRESS, SERVICE = "ullage-node", "10.99.0.1", "10.97.0.1"
PODS = "10.98.0.0/24"
USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    f"system:node:{NODE}": "system:nodes",
}
# the kubelet insists on writing these, and they are the whole machine's
SYSCTLS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)

CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "ullage.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "node",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/var/lib/cni/networks",
            },
        },
        {"type": "loopback"},
    ],
}

KUBELET = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
clusterDNS: ["10.97.0.10"]
readOnlyPort: 10255
cgroupDriver: cgroupfs
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
evictionPressureTransitionPeriod: 20s
nodeStatusUpdateFrequency: 1s
"""


def setup(directory: Path, tools: Path) -> str:
    """Return the script that makes a node of a process tree: network, cgroups as a machine has them, own places."""
    sysctls = "\n".join(
        f"cat /proc/sys/{name} > {directory}/{name.replace('/', '_')}; "
        f"mount --bind {directory}/{name.replace('/', '_')} /proc/sys/{name}"
        for name in SYSCTLS
    )
    return f"""
hostname {NODE}
ip link set lo up
ip link add node0 type bridge
ip addr add {ADDRESS}/24 dev node0
ip addr add {SERVICE}/32 dev lo
ip link set node0 up
ip route add default via {ADDRESS} dev node0
# the kubelet asks a cloud for its metadata, and would wait for nobody
ip route add unreachable 169.254.0.0/16
controllers=$(cd /sys/fs/cgroup; ls -d */ | tr -d /)
umount -R -l /sys/fs/cgroup
mount -t tmpfs -o mode=755,size=1m tmpfs /sys/fs/cgroup
for name in $controllers; do
    mkdir /sys/fs/cgroup/$name
    case $name in
        unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
        systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd ;;
        *) mount -t cgroup -o $name cgroup /sys/fs/cgroup/$name ;;
    esac
done
for name in etc opt; do
    mkdir -p {directory}/upper-$name {directory}/work-$name
    mount -t overlay -o lowerdir=/$name,upperdir={directory}/upper-$name,workdir={directory}/work-$name overlay /$name
done
mkdir -p /run/containerd /run/netns /run/lock /etc/cni/net.d /opt/cni/bin /var/lib/cni
cp {tools}/usr/lib/cni/* /opt/cni/bin/
cp {directory}/network.conflist /etc/cni/net.d/10-node.conflist
echo '{ADDRESS} {NODE}' >> /etc/hosts
truncate -s 600M {directory}/nodefs.img
mkfs.ext4 -q -N 6000 -m 0 {directory}/nodefs.img
mount -o loop {directory}/nodefs.img /var/lib/kubelet
{sysctls}
"""


def write(directory: Path) -> None:
    """Write everything but the node's own script: certificates, tokens, configuration."""
    pki = directory / "pki"
    pki.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=pki)

    openssl("genrsa", "-out", "sa.key", "2048")
    new = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=ullage-test")
    names = f"DNS:kubernetes,DNS:{NODE},DNS:localhost,IP:127.0.0.1,IP:{ADDRESS},IP:{SERVICE}"
    (pki / "names").write_text(f"subjectAltName={names}\n")
    for name, subject in (("apiserver", "/CN=kube-apiserver"), ("admin", "/O=system:masters/CN=admin")):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl(*sign, "-out", f"{name}.crt", "-days", "2", "-extfile", "names")
    rows = [f'token-{number},{user},{number},"{group}"' for number, (user, group) in enumerate(USERS.items())]
    (pki / "tokens.csv").write_text("\n".join(row.removesuffix(',""') for row in rows) + "\n")
    for number, user in enumerate(USERS):
        server = {"server": f"https://{ADDRESS}:6443", "certificate-authority": f"{pki}/ca.crt"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": server}],
            "users": [{"name": "it", "user": {"token": f"token-{number}"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        kubeconfig(directory, user).write_text(json.dumps(config))
    (directory / "containerd.toml").write_text(CONTAINERD)
    (directory / "kubelet.yml").write_text(KUBELET.format(pki=pki))
    (directory / "network.conflist").write_text(json.dumps(NETWORK))


def kubeconfig(directory: Path, user: str) -> Path:
    """Return where a user's credentials are."""
    return directory / "pki" / f"{user.replace(':', '-')}.kubeconfig"


def programs(directory: Path) -> dict[str, list[str]]:
    """Return the programs of the control plane and the kubelet, in the order in which they start, by name."""
    pki = directory / "pki"

    def credentials(user: str) -> list[str]:
        path = kubeconfig(directory, user)
        return [f"--{name}={path}" for name in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]

    url = "http://127.0.0.1:2379"
    peers = "http://127.0.0.1:2380"
    sock = "unix:///run/containerd/containerd.sock"
    return {
        "containerd": [f"--config={directory}/containerd.toml"],
        "etcd": [
            *("--data-dir=/run/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            f"--listen-peer-urls={peers}",
        ],
        "kube-apiserver": [
            *(f"--etcd-servers={url}", "--bind-address=0.0.0.0", "--secure-port=6443"),
            *(f"--advertise-address={ADDRESS}", f"--tls-cert-file={pki}/apiserver.crt"),
            *(f"--tls-private-key-file={pki}/apiserver.key", f"--client-ca-file={pki}/ca.crt"),
            *(f"--token-auth-file={pki}/tokens.csv", "--service-cluster-ip-range=10.97.0.0/24"),
            *("--authorization-mode=Node,RBAC", "--allow-privileged=true"),
            *("--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={pki}/sa.key"),
            *(f"--service-account-signing-key-file={pki}/sa.key", f"--kubelet-client-certificate={pki}/admin.crt"),
            *(f"--kubelet-client-key={pki}/admin.key", "--kubelet-preferred-address-types=InternalIP"),
        ],
        "kube-controller-manager": [
            *credentials("system:kube-controller-manager"),
            *("--use-service-account-credentials", f"--service-account-private-key-file={pki}/sa.key"),
            *(f"--root-ca-file={pki}/ca.crt", "--leader-elect=false"),
        ],
        "kube-scheduler": [*credentials("system:kube-scheduler"), "--leader-elect=false"],
        "kubelet": [
            *(f"--config={directory}/kubelet.yml", f"--kubeconfig={kubeconfig(directory, f'system:node:{NODE}')}"),
            *("--container-runtime=remote", f"--container-runtime-endpoint={sock}"),
            *(f"--node-ip={ADDRESS}", f"--hostname-override={NODE}"),
        ],
    }
