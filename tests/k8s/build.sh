#!/usr/bin/env bash
# build.sh REPOSITORY DIR: Kubernetes 1.20.2 from Debian's source package into DIR/bin, and what it needs into
# DIR/tools, from bookworm's main alone. Downloaded and unpacked, never installed. About 160 s on two cores.
set -euo pipefail
repository=$1 dir=$2
mkdir -p "$dir"/{dl,apt/lists/partial,apt/cache/archives/partial,go,tools,bin,gotmp,gopath/src/k8s.io}
cd "$dir"
signed="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $repository bookworm main"
printf 'deb %s\ndeb-src %s\n' "$signed" "$signed" > apt/sources.list
cat > apt/conf << EOF
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$dir/apt/lists";
Dir::Cache "$dir/apt/cache";
APT::Sandbox::User "root";
EOF
export APT_CONFIG=$dir/apt/conf
apt-get update -qq
cd dl
apt-get source -qq --download-only 'kubernetes=1.20.5+really1.20.2-1.1+deb12u1'
apt-get download -qq golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev \
    etcd-server containernetworking-plugins socat
cd ..
for package in golang-1.19-go golang-1.19-src; do dpkg-deb -x dl/${package}_*.deb go; done
for package in etcd-server containernetworking-plugins socat golang-github-modern-go-reflect2-dev; do
    dpkg-deb -x dl/${package}_*.deb tools
done
tar xf dl/kubernetes_*.orig.tar.gz -C gopath/src/k8s.io
mv gopath/src/k8s.io/kubernetes-1.20.2 gopath/src/k8s.io/kubernetes
cd gopath/src/k8s.io/kubernetes
# with Go 1.18 and newer, reflect2 1.0.1 corrupts memory (the API server dies at random); Debian has 1.0.2
rm -rf vendor/github.com/modern-go/reflect2
cp -r "$dir"/tools/usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/
export GOROOT=$dir/go/usr/lib/go-1.19 GOPATH=$dir/gopath GOCACHE=$dir/gocache GOTMPDIR=$dir/gotmp
# go.mod is too old for -mod=vendor
export GO111MODULE=off GOFLAGS='' GOPROXY=off CGO_ENABLED=0 PATH=$GOROOT/bin:$PATH
# the API server tells client-go's version, the others component-base's
flags='-s -w'
for package in component-base/version client-go/pkg/version; do
    variable=k8s.io/kubernetes/vendor/k8s.io/$package
    flags="$flags -X $variable.gitVersion=v1.20.2 -X $variable.gitMajor=1 -X $variable.gitMinor=20"
done
build() { go build -tags "providerless dockerless" -ldflags "$flags" -o "$dir/bin/$1" "$2"; }
build kubelet ./cmd/kubelet
# a generated file that the tarball lacks
build openapi-gen ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
inputs=$(grep -rl --include='*.go' '+k8s:openapi-gen=' staging/src pkg |
    grep -v -E 'code-generator|sample-apiserver|/generated/|testdata' |
    sed 's,^staging/src/,vendor/,' | xargs -n1 dirname | sort -u | sed 's,^,k8s.io/kubernetes/,' | paste -sd,)
"$dir/bin/openapi-gen" --logtostderr -i "$inputs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$dir/violations.report" 2> /dev/null
for name in kube-apiserver kube-controller-manager kube-scheduler; do build "$name" "./cmd/$name"; done
cd build/pause/linux
CGO_ENABLED=1 gcc -Os -static -s -DVERSION=1 -o "$dir/bin/pause" pause.c
cd "$dir"
rm -rf dl apt go gotmp gopath gocache bin/openapi-gen violations.report tools/usr/share
