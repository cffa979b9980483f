// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	berth "github.com/berth-dev/berth/api/v1alpha1"
)

// connect uses a cluster that is there, with Berth and its provisioner, and that nothing of
// an earlier run is left in.
func (r *run) connect(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", r.kubeconfig)
	if err != nil {
		return fmt.Errorf("read %s: %w", r.kubeconfig, err)
	}
	config.QPS = -1
	if err := rest.LoadTLSFiles(config); err != nil { // the agents get its authority
		return fmt.Errorf("read %s: %w", r.kubeconfig, err)
	}
	if r.cluster, err = newCluster(config); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{}
	if err := r.cluster.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "berth-node-agent"}, account); err != nil {
		return fmt.Errorf("look for Berth in the cluster: %w", err)
	}
	err = r.cluster.client.Get(ctx, client.ObjectKey{Name: claims}, &corev1.Namespace{})
	if !apierrors.IsNotFound(err) {
		return errors.Join(err, fmt.Errorf("namespace %s is there already: what an earlier run has left must be removed first", claims))
	}
	return r.cluster.prepare(ctx, r.poolPath())
}

// leave removes what was made in a cluster that was there before, while the agents still run:
// they take the volumes and pools away.
func (r *run) leave(ctx context.Context) error {
	c := r.cluster.client
	ours := client.MatchingLabels{nodeLabel: "true"}
	if err := c.DeleteAllOf(ctx, &corev1.PersistentVolumeClaim{}, client.InNamespace(claims)); err != nil {
		return fmt.Errorf("delete the claims: %w", err)
	}
	gone := func(what string, list client.ObjectList, opts ...client.ListOption) error {
		return until(ctx, what+" are gone", 20*time.Minute, r.processes(), func() (bool, error) {
			if err := c.List(ctx, list, opts...); err != nil {
				return false, err
			}
			left := 0
			switch list := list.(type) {
			case *berth.LocalVolumeList:
				for _, lv := range list.Items {
					if lv.Spec.Pool == class {
						left++
					}
				}
			case *berth.PoolList:
				for _, pool := range list.Items {
					if pool.Spec.PoolSetName == class {
						left++
					}
				}
			}
			if left > 0 {
				return false, fmt.Errorf("%d %s are left", left, what)
			}
			return true, nil
		})
	}
	if err := gone("volumes", &berth.LocalVolumeList{}); err != nil {
		return err
	}
	for _, object := range []client.Object{
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}}, &berth.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: class}},
	} {
		if err := client.IgnoreNotFound(c.Delete(ctx, object)); err != nil {
			return fmt.Errorf("delete %s: %w", object.GetName(), err)
		}
	}
	pools := &berth.PoolList{}
	if err := c.List(ctx, pools); err != nil {
		return fmt.Errorf("list Pools: %w", err)
	}
	for i := range pools.Items {
		if pools.Items[i].Spec.PoolSetName == class {
			if err := client.IgnoreNotFound(c.Delete(ctx, &pools.Items[i])); err != nil {
				return fmt.Errorf("delete Pool %s: %w", pools.Items[i].Name, err)
			}
		}
	}
	if err := gone("pools", pools); err != nil {
		return err
	}
	r.stopAgents()
	for i := range r.nodes {
		devices := &berth.BlockDeviceList{}
		if err := c.List(ctx, devices, client.MatchingFields{"spec.nodeName": nodeName(i)}); err != nil {
			return fmt.Errorf("list BlockDevices: %w", err)
		}
		for j := range devices.Items {
			if err := client.IgnoreNotFound(c.Delete(ctx, &devices.Items[j])); err != nil {
				return fmt.Errorf("delete BlockDevice %s: %w", devices.Items[j].Name, err)
			}
		}
	}
	now := client.GracePeriodSeconds(0)
	if err := c.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(namespace), ours, now); err != nil {
		return fmt.Errorf("delete the agents' pods: %w", err)
	}
	if err := c.DeleteAllOf(ctx, &corev1.Node{}, ours); err != nil { // CSINodes and capacities go with them
		return fmt.Errorf("delete the nodes: %w", err)
	}
	return client.IgnoreNotFound(c.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: claims}}))
}
