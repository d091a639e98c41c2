# The image of `make image`, where a builder image can be pulled:
#   docker buildx build --platform linux/amd64,linux/arm64 -t peili .
# The builder runs on the machine's own platform and compiles for the other one.
FROM --platform=$BUILDPLATFORM rust:1-bookworm AS build
ARG TARGETARCH
# `--build-arg PROFILE=quick` is built in a third of the time, for a look at whether it builds.
ARG PROFILE=release
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends \
        ca-certificates protobuf-compiler gcc-x86-64-linux-gnu gcc-aarch64-linux-gnu \
        libc6-dev-amd64-cross libc6-dev-arm64-cross
WORKDIR /peili
COPY . .
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
RUN case "$TARGETARCH" in arm64) triple=aarch64 ;; *) triple=x86_64 ;; esac && \
    triple=$triple-unknown-linux-gnu && rustup target add "$triple" && \
    make static DEPS= TRIPLE="$triple" PROFILE="$PROFILE" && \
    install -D "target/$triple/$PROFILE/peili" /root-of-image/peili && \
    install -D -m 444 LICENSE /root-of-image/LICENSE && \
    install -D -m 444 /etc/ssl/certs/ca-certificates.crt /root-of-image/etc/ssl/certs/ca-certificates.crt

FROM scratch
COPY --from=build /root-of-image /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 0:0
ENTRYPOINT ["/peili"]
