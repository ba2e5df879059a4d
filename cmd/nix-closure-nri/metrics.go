// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type metrics struct {
	registry                *prometheus.Registry
	seen, adjusted, refused prometheus.Counter
	latency                 prometheus.Histogram
	without                 prometheus.Gauge
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "nix_closure", Name: name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		seen:     counter("containers_seen_total", "Containers that the engine told of."),
		adjusted: counter("containers_adjusted_total", "Containers that got the hook."),
		refused:  counter("containers_refused_total", "Containers that were refused."),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "nix_closure", Name: "create_container_seconds", Help: "Time to answer for one container.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
		}),
		without: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "nix_closure", Name: "containers_without_closure",
			Help: "Containers that ran without the closure that they ask for, when the plugin last connected.",
		}),
	}
	m.registry.MustRegister(m.seen, m.adjusted, m.refused, m.latency, m.without)
	return m
}

func (m *metrics) count(adjusted bool, err error, took time.Duration) {
	m.seen.Inc()
	m.latency.Observe(took.Seconds())
	switch {
	case err != nil:
		m.refused.Inc()
	case adjusted:
		m.adjusted.Inc()
	}
}

// serve answers /healthz, which is well while the engine is connected, and
// /metrics, on a loopback address: what is said there is for nobody outside.
func (p *plugin) serve(ctx context.Context, address string) (*http.Server, error) {
	if at, err := netip.ParseAddrPort(address); err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("--http %q: not a loopback address and a port, like 127.0.0.1:9440", address)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.connected.Load() {
			http.Error(w, "not connected to the engine", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			p.log.WithField("error", err.Error()).Error("serving")
		}
	}()
	return server, nil
}
