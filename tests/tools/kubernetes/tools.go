//go:build tools

// Package tools names the Kubernetes programs that the embedded test cluster runs.
//
// Only the import graph matters: it keeps go.mod and go.sum complete, so that each
// program builds from exactly the versions written there.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	_ "k8s.io/kubernetes/cmd/kube-proxy/app"
	_ "k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
	_ "k8s.io/kubectl/pkg/cmd"
)
