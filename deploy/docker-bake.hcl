# Release builds: both architectures, attested, reproducible. (skaffold makes the tutorial's images.)
#   export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) REVISION=$(git rev-parse HEAD) VERSION=0.1.0 REGISTRY=...
#   docker buildx bake -f deploy/docker-bake.hcl --set '*.output=type=registry,rewrite-timestamp=true'
variable "REGISTRY" { default = "localhost" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }

group "default" { targets = ["image"] }

target "image" {
  name       = bin
  matrix     = { bin = ["echo-grpc", "reverse-grpc", "edge-proxy"] }
  context    = "."
  dockerfile = "deploy/Dockerfile"
  target     = bin
  args       = { VERSION = VERSION, REVISION = REVISION }
  tags       = ["${REGISTRY}/${bin}:${VERSION}"]
  platforms  = ["linux/amd64", "linux/arm64"]
  attest     = ["type=provenance,mode=max", "type=sbom"]
}
