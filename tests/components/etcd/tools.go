//go:build tools

// Package components names what is built from the modules that go.mod pins.
package components

import _ "go.etcd.io/etcd/server/v3"
