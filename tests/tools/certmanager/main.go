// Command certmanager runs the certificate controllers of cert-manager against the API server of a test cluster.
//
// cert-manager's own command is not published as a Go module, its controllers are. These are the real ones for issuers
// that need nothing from outside: self-signed and CA. Requests are approved as cert-manager's approver does. There is
// no webhook and no leader election: one process, for tests.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	requestsca "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	requestsselfsigned "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	"github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

// workers per controller: tests have few certificates.
const workers = 2

// names of the controllers that run; those for ACME, Vault and Venafi need services that a test does not have.
var names = []string{
	issuers.ControllerName,
	clusterissuers.ControllerName,
	trigger.ControllerName,
	keymanager.ControllerName,
	requestmanager.ControllerName,
	issuing.ControllerName,
	readiness.ControllerName,
	revisionmanager.ControllerName,
	approver.ControllerName,
	requestsca.CRControllerName,
	requestsselfsigned.CRControllerName,
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "path of the kubeconfig of the cluster to work on")
	namespace := flag.String("cluster-resource-namespace", "cert-manager", "namespace of the Secrets of ClusterIssuers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *namespace); err != nil {
		fmt.Fprintf(os.Stderr, "certmanager: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, namespace string) error {
	// Controllers find their logger in the context.
	ctx = klog.NewContext(ctx, klog.Background())
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:    kubeconfig,
		IssuerOptions: controller.IssuerOptions{ClusterResourceNamespace: namespace},
		CertificateOptions: controller.CertificateOptions{
			// A test that waits for a retry should not wait for an hour.
			CertificateRequestMinimumBackoffDuration: 10 * time.Second,
			CertificateRequestMaximumBackoffDuration: time.Minute,
		},
	})
	if err != nil {
		return fmt.Errorf("cannot reach the cluster: %w", err)
	}
	known := controller.Known()
	ended := make(chan error, len(names))
	var controllers []controller.Interface
	for _, name := range names {
		construct, ok := known[name]
		if !ok {
			return fmt.Errorf("cert-manager has no controller %q", name)
		}
		made, err := construct(factory)
		if err != nil {
			return fmt.Errorf("cannot make controller %q: %w", name, err)
		}
		controllers = append(controllers, made)
	}
	// Only now do the informers know what to watch.
	shared, err := factory.Build()
	if err != nil {
		return fmt.Errorf("cannot make clients: %w", err)
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	shared.HTTP01ResourceMetadataInformersFactory.Start(ctx.Done())
	for i, made := range controllers {
		name := names[i]
		go func() {
			if err := made.Run(workers, ctx); err != nil {
				ended <- fmt.Errorf("controller %q ended: %w", name, err)
				return
			}
			ended <- nil
		}()
	}
	for range controllers {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}
