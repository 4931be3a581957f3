//go:build tools

// Package components names what is built from the modules that go.mod pins.
package components

import _ "istio.io/istio/pilot/cmd/pilot-discovery"
