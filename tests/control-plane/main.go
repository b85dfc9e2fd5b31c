// A whole Kubernetes control plane in one program, for the tests of Pinnace: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, kube-proxy and kubectl as their projects publish them, and three small
// programs of our own around them (prepare, ready, faults).
//
// The program to run is the name this one is called by, or else the first argument. One binary instead of six,
// because most of what they are made of they share: it is compiled, linked and stored once.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// Every program reads os.Args, its own name first.
var programs = map[string]func() error{
	"etcd":                    func() error { etcdmain.Main(os.Args); return nil },
	"kube-apiserver":          func() error { return run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() error { return run(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() error { return run(scheduler.NewSchedulerCommand()) },
	"kube-proxy":              func() error { return run(proxy.NewProxyCommand()) },
	"kubectl":                 func() error { return run(kubectl.NewDefaultKubectlCommand()) },
	"prepare":                 prepare,
	"ready":                   ready,
	"faults":                  faults,
}

func run(command *cobra.Command) error {
	os.Exit(cli.Run(command))
	return nil
}

func main() {
	program, found := programs[filepath.Base(os.Args[0])]
	if !found && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		program, found = programs[os.Args[0]]
	}
	if !found {
		fmt.Fprintf(os.Stderr, "usage: control-plane PROGRAM [ARGUMENT...]\nprograms: %s\n", strings.Join(slices.Sorted(maps.Keys(programs)), ", "))
		os.Exit(2)
	}
	if err := program(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}
