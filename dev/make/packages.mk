# Packages that the build and the tests need. Part of the Makefile.
# What the goals named on the command line need; clang and its runtimes are for fuzzing and for the tests built with it.
DEBIAN := gcc g++ libc6-dev make pkg-config libpcre2-dev libcjson-dev
ifneq ($(filter test% fuzz torture,$(MAKECMDGOALS)),)
DEBIAN += libopenmpi-dev openmpi-bin clang libclang-rt-dev libomp-dev curl python3
endif
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
.PHONY: deps deps_if_missing
deps:
	@missing=$$(for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "please install, by the names your system has for them: $(DEBIAN)" >&2; \
		pkg-config --exists $(PACKAGES); exit $$?; fi; \
	echo "installing" $$missing; \
	$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
deps_if_missing:
	@pkg-config --exists $(PACKAGES) 2>/dev/null || $(MAKE) --no-print-directory deps
