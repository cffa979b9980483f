// Copyright The Berth Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

var _ = Describe("kubectl get blockdevices", Label("blockdevices"), func() {
	It("shows the columns that users know, and with -o wide why a disk is not usable", func(ctx SpecContext) {
		narrow, wide := columns(ctx)
		Expect(narrow).To(Equal([]string{"Name", "NodeName", "Size", "ClaimState", "Status", "Age"}))
		Expect(wide).To(Equal([]string{"Name", "NodeName", "Path", "FSType", "Size", "ClaimState", "Status", "Age", "Model", "Serial", "Reason"}))
	}, SpecTimeout(patience))

	It("shows every foreign disk, and none of them as usable", func(ctx SpecContext) {
		needs(CanSeeForeignDisks)
		devices := &v1alpha1.BlockDeviceList{}
		Expect(suite.client.List(ctx, devices)).To(Succeed())
		seen := 0
		for _, device := range devices.Items {
			if !strings.HasPrefix(device.Status.Serial, "FOREIGN") {
				continue
			}
			seen++
			usable, reason := usability(&device)
			Expect(usable).To(BeFalse(), "%s with %s on %s", device.Status.Path, device.Status.Serial, device.Spec.NodeName)
			Expect(reason).NotTo(BeEmpty())
		}
		Expect(seen).To(BeNumerically(">=", len(suite.foreign)))
	}, SpecTimeout(patience))
})

var _ = Describe("The ConfigMap of filters", Label("filters"), Serial, func() {
	var original corev1.ConfigMap
	key := func() client.ObjectKey {
		return client.ObjectKey{Namespace: suite.description.Namespace, Name: v1alpha1.ConfigMapName}
	}

	BeforeEach(func(ctx SpecContext) {
		Expect(suite.client.Get(ctx, key(), &original)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			now := &corev1.ConfigMap{}
			Expect(suite.client.Get(ctx, key(), now)).To(Succeed())
			now.Data = original.Data
			Expect(suite.client.Update(ctx, now)).To(Succeed())
		}, NodeTimeout(time.Minute))
	})

	write := func(ctx context.Context, text string) {
		GinkgoHelper()
		now := &corev1.ConfigMap{}
		Expect(suite.client.Get(ctx, key(), now)).To(Succeed())
		now.Data = map[string]string{"filters.yaml": text}
		Expect(suite.client.Update(ctx, now)).To(Succeed())
	}

	It("takes effect within seconds, and a broken one changes nothing and says so", func(ctx SpecContext) {
		victim := usableDisk(ctx)
		By("dropping one disk by its path")
		write(ctx, `filterconfigs:
- key: os-disk-exclude-filter
  name: os disk
  state: true
  exclude: "/,/etc/hosts,/boot"
- key: path-filter
  name: mine
  state: true
  include: ""
  exclude: "/dev/loop,/dev/dm-,`+victim.Status.Path+`"
`)
		awaitUsable(ctx, victim, false, "mine")

		By("breaking the ConfigMap")
		write(ctx, "filterconfigs:\n- key: path-filter\n  nmae: mine\n  state: maybe\n")
		Eventually(func(g Gomega, ctx context.Context) {
			events := &corev1.EventList{}
			g.Expect(suite.client.List(ctx, events, client.InNamespace(suite.description.Namespace),
				client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("involvedObject.name", v1alpha1.ConfigMapName)})).To(Succeed())
			messages := []string{}
			for _, event := range events.Items {
				if event.Type == corev1.EventTypeWarning {
					messages = append(messages, event.Message)
				}
			}
			g.Expect(messages).To(ContainElement(ContainSubstring("nmae")), "a warning that names the misspelt field")
		}).WithContext(ctx).WithTimeout(30 * time.Second).WithPolling(time.Second).Should(Succeed())
		Consistently(func(g Gomega, ctx context.Context) {
			now := &v1alpha1.BlockDevice{}
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(victim), now)).To(Succeed())
			usable, _ := usability(now)
			g.Expect(usable).To(BeFalse(), "the last good filters stay in force")
		}).WithContext(ctx).WithTimeout(3 * time.Second).Should(Succeed())

		By("mending it")
		write(ctx, original.Data["filters.yaml"])
		awaitUsable(ctx, victim, true, "")
	}, SpecTimeout(patience))

	It("that is deleted stays in force, and no disk is usable for an agent that never saw it", func(ctx SpecContext) {
		needs(CanExec)
		victim := usableDisk(ctx)
		gone := original.DeepCopy()
		Expect(suite.client.Delete(ctx, gone)).To(Succeed())
		restore := func(ctx context.Context) {
			fresh := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: gone.Namespace, Name: gone.Name, Labels: gone.Labels}, Data: original.Data}
			Expect(client.IgnoreAlreadyExists(suite.client.Create(ctx, fresh))).To(Succeed())
		}
		DeferCleanup(func(ctx SpecContext) { restore(ctx) }, NodeTimeout(time.Minute))
		Consistently(func(g Gomega, ctx context.Context) {
			now := &v1alpha1.BlockDevice{}
			g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(victim), now)).To(Succeed())
			usable, message := usability(now)
			g.Expect(usable).To(BeTrue(), message)
		}).WithContext(ctx).WithTimeout(5 * time.Second).WithPolling(time.Second).Should(Succeed())
		Expect(restartAgent(ctx, victim.Spec.NodeName)).To(Succeed())
		awaitWords(ctx, victim, "no valid filters were seen yet")
		restore(ctx)
		awaitWords(ctx, victim, "blank")
		awaitAgent(ctx, victim.Spec.NodeName)
	}, SpecTimeout(2*patience))

	It("has rules for the nodes with a label, and follows the label", func(ctx SpecContext) {
		const label = "e2e.berth.dev/rules"
		victim := usableDisk(ctx)
		relabel := func(ctx context.Context, value any) {
			GinkgoHelper()
			patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{label: value}}})
			Expect(err).NotTo(HaveOccurred())
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: victim.Spec.NodeName}}
			Expect(suite.client.Patch(ctx, node, client.RawPatch(types.MergePatchType, patch))).To(Succeed())
		}
		DeferCleanup(func(ctx SpecContext) { relabel(ctx, nil) }, NodeTimeout(time.Minute))
		write(ctx, original.Data["filters.yaml"]+`
rules:
- name: set aside
  action: exclude
  nodes: `+label+`=yes
  match: {paths: ["`+victim.Status.Path+`"], maxSize: 1Pi}
`)
		relabel(ctx, "yes")
		awaitUsable(ctx, victim, false, "set aside")
		relabel(ctx, "no")
		awaitUsable(ctx, victim, true, "")
	}, SpecTimeout(patience))
})

// columns asks the API server for the table as kubectl does.
func columns(ctx context.Context) (narrow, wide []string) {
	GinkgoHelper()
	config := rest.CopyConfig(suite.config)
	config.GroupVersion = &v1alpha1.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	rc, err := rest.RESTClientFor(config)
	Expect(err).NotTo(HaveOccurred())
	raw, err := rc.Get().Resource("blockdevices").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
	Expect(err).NotTo(HaveOccurred())
	table := &metav1.Table{}
	Expect(json.Unmarshal(raw, table)).To(Succeed())
	for _, column := range table.ColumnDefinitions {
		wide = append(wide, column.Name)
		if column.Priority == 0 {
			narrow = append(narrow, column.Name)
		}
	}
	return narrow, wide
}

func usability(device *v1alpha1.BlockDevice) (usable bool, message string) {
	for _, condition := range device.Status.Conditions {
		if condition.Type == v1alpha1.BlockDeviceUsable {
			return condition.Status == metav1.ConditionTrue, condition.Message
		}
	}
	return false, ""
}

// usableDisk finds a disk that could be claimed now.
func usableDisk(ctx context.Context) *v1alpha1.BlockDevice {
	GinkgoHelper()
	devices := &v1alpha1.BlockDeviceList{}
	var found *v1alpha1.BlockDevice
	Eventually(func(g Gomega, ctx context.Context) {
		g.Expect(suite.client.List(ctx, devices)).To(Succeed())
		for i := range devices.Items {
			if usable, _ := usability(&devices.Items[i]); usable && devices.Items[i].Status.State == v1alpha1.DeviceActive {
				found = &devices.Items[i]
			}
		}
		g.Expect(found).NotTo(BeNil(), "a usable disk")
	}).WithContext(ctx).WithTimeout(time.Minute).WithPolling(time.Second).Should(Succeed())
	return found
}

func awaitUsable(ctx context.Context, device *v1alpha1.BlockDevice, wanted bool, mentions string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		now := &v1alpha1.BlockDevice{}
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(device), now)).To(Succeed())
		usable, message := usability(now)
		g.Expect(usable).To(Equal(wanted), message)
		g.Expect(message).To(ContainSubstring(mentions))
	}).WithContext(ctx).WithTimeout(15 * time.Second).WithPolling(250 * time.Millisecond).Should(Succeed())
}

// awaitWords waits until a disk says some words of why it can be used or not.
func awaitWords(ctx context.Context, device *v1alpha1.BlockDevice, words string) {
	GinkgoHelper()
	Eventually(func(g Gomega, ctx context.Context) {
		now := &v1alpha1.BlockDevice{}
		g.Expect(suite.client.Get(ctx, client.ObjectKeyFromObject(device), now)).To(Succeed())
		_, message := usability(now)
		g.Expect(message).To(ContainSubstring(words))
	}).WithContext(ctx).WithTimeout(2 * time.Minute).WithPolling(500 * time.Millisecond).Should(Succeed())
}
