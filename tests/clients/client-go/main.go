// What client-go is asked to do, `client-go CHECK`: its own streams, informers, queues and elections, in the forms that others don't use by default (watch-lists, SPDY).
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/retry"
	"k8s.io/client-go/util/workqueue"
)

const ns = "shop"

type world struct {
	context.Context
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
	seen    atomic.Pointer[[]string]
}

var maps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

func main() {
	checks := map[string]func(*world) error{
		"lists": lists, "dynamic": dynamicInformers, "metadata": metadataPages, "queue": queue, "election": election,
		"exec-websocket": execBy(true), "exec-spdy": execBy(false), "forward-websocket": forwardBy(true), "forward-spdy": forwardBy(false),
		"apply": apply, "mapping": mapping, "events": tell,
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(err)
	config.QPS, config.Burst = 500, 500
	ctx, stop := context.WithTimeout(context.Background(), 100*time.Second)
	defer stop()
	w := &world{Context: ctx, config: config}
	w.seen.Store(&[]string{})
	// What was asked for, in order.
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			answer, err := next.RoundTrip(r)
			if err == nil {
				for done := false; !done; {
					before := w.seen.Load()
					all := append(append([]string{}, *before...), r.Method+" "+r.URL.RequestURI()+" "+answer.Header.Get("Content-Type"))
					done = w.seen.CompareAndSwap(before, &all)
				}
			}
			return answer, err
		})
	})
	w.client = kubernetes.NewForConfigOrDie(config)
	w.dynamic = dynamic.NewForConfigOrDie(config)
	check := checks[os.Args[1]]
	if check == nil {
		must(fmt.Errorf("no check %s", os.Args[1]))
	}
	must(check(w))
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (w *world) until(what string, is func() bool) error {
	if wait.PollUntilContextTimeout(w, 50*time.Millisecond, 60*time.Second, true, func(context.Context) (bool, error) { return is(), nil }) != nil {
		return fmt.Errorf("not within a minute: %s; asked for %s", what, strings.Join(*w.seen.Load(), "\n"))
	}
	return nil
}

func (w *world) asked(part string) bool {
	for _, s := range *w.seen.Load() {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

func (w *world) make(prefix string, n int) error {
	for i := range n {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%03d", prefix, i), Labels: map[string]string{"of": prefix}}}
		if _, err := w.client.CoreV1().ConfigMaps(ns).Create(w, m, metav1.CreateOptions{}); err != nil && !errors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// A list comes by the watch, as protobuf, and no LIST is asked for.
func lists(w *world) error {
	if err := w.make("list", 300); err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithNamespace(ns), informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "of=list" }))
	informer := factory.Core().V1().ConfigMaps()
	count := func() int { return len(informer.Informer().GetStore().ListKeys()) }
	informer.Informer()
	factory.Start(w.Done())
	factory.WaitForCacheSync(w.Done())
	if count() != 300 {
		return fmt.Errorf("synced with %d of 300", count())
	}
	if !w.asked("sendInitialEvents=true") || w.asked("GET /api/v1/namespaces/shop/configmaps?labelSelector=of%3Dlist&limit=500") {
		return fmt.Errorf("not by a watch-list: %s", strings.Join(*w.seen.Load(), "\n"))
	}
	if err := w.client.CoreV1().ConfigMaps(ns).DeleteCollection(w, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "of=list"}); err != nil {
		return err
	}
	return w.until("all of them are gone", func() bool { return count() == 0 })
}

func dynamicInformers(w *world) error {
	if err := w.make("dynamic", 50); err != nil {
		return err
	}
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(w.dynamic, 0, ns, func(o *metav1.ListOptions) { o.LabelSelector = "of=dynamic" })
	var added, updated, deleted atomic.Int64
	informer := factory.ForResource(maps).Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { added.Add(1) }, UpdateFunc: func(_, _ any) { updated.Add(1) }, DeleteFunc: func(any) { deleted.Add(1) },
	})
	if err != nil {
		return err
	}
	factory.Start(w.Done())
	factory.WaitForCacheSync(w.Done())
	if err := w.until("all were added", func() bool { return added.Load() == 50 }); err != nil {
		return err
	}
	for i := range 50 {
		one := w.dynamic.Resource(maps).Namespace(ns)
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			o, err := one.Get(w, fmt.Sprintf("dynamic-%03d", i), metav1.GetOptions{})
			if err != nil {
				return err
			}
			_ = unstructured.SetNestedField(o.Object, "1", "data", "v")
			_, err = one.Update(w, o, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := w.until("all were updated", func() bool { return updated.Load() == 50 }); err != nil {
		return err
	}
	if err := w.dynamic.Resource(maps).Namespace(ns).DeleteCollection(w, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "of=dynamic"}); err != nil {
		return err
	}
	return w.until("all were deleted", func() bool { return deleted.Load() == 50 && len(informer.GetStore().ListKeys()) == 0 })
}

func metadataPages(w *world) error {
	if err := w.make("meta", 20); err != nil {
		return err
	}
	// An item's kind isn't told: this client asks in protobuf, where none has it.
	seen, left, next := sets.New[string](), 20, ""
	for {
		page, err := metadata.NewForConfigOrDie(w.config).Resource(maps).Namespace(ns).List(w, metav1.ListOptions{LabelSelector: "of=meta", Limit: 7, Continue: next})
		if err != nil {
			return err
		}
		for _, item := range page.Items {
			if item.Labels["of"] == "meta" && item.UID != "" {
				seen.Insert(item.Name)
			}
		}
		left -= len(page.Items)
		// How many are left isn't told where a selector chooses.
		if seen.Len()+left != 20 || (page.Continue == "") != (left == 0) || page.RemainingItemCount != nil || left > 0 && len(page.Items) != 7 {
			return fmt.Errorf("%d items of %v, %+v", len(page.Items), seen, page.ListMeta)
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	if !w.asked("labelSelector=of%3Dmeta&limit=7 application/vnd.kubernetes.protobuf") {
		return fmt.Errorf("not by protobuf: %s", strings.Join(*w.seen.Load(), "\n"))
	}
	return nil
}

// A controller in the manner of client-go's example: what it hears it queues, what fails it tries again, later each time.
func queue(w *world) error {
	if err := w.make("queued", 100); err != nil {
		return err
	}
	work := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	list := cache.NewFilteredListWatchFromClient(w.client.CoreV1().RESTClient(), "configmaps", ns, func(o *metav1.ListOptions) { o.LabelSelector = "of=queued" })
	add := func(o any) {
		if key, err := cache.MetaNamespaceKeyFunc(o); err == nil {
			work.Add(key)
		}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: list, ObjectType: &corev1.ConfigMap{}, Handler: cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}})
	go informer.RunWithContext(w)
	var tries atomic.Int64
	for range 4 {
		go func() {
			for {
				key, over := work.Get()
				if over {
					return
				}
				o, there, _ := store.GetByKey(key)
				if err := func() error {
					if tries.Add(1)%10 == 0 {
						return fmt.Errorf("every tenth fails")
					}
					if !there || o.(*corev1.ConfigMap).Data["done"] == "yes" {
						return nil
					}
					m := o.(*corev1.ConfigMap).DeepCopy()
					m.Data = map[string]string{"done": "yes"}
					_, err := w.client.CoreV1().ConfigMaps(ns).Update(w, m, metav1.UpdateOptions{})
					return err
				}(); err != nil {
					work.AddRateLimited(key)
				} else {
					work.Forget(key)
				}
				work.Done(key)
			}
		}()
	}
	return w.until("all are done", func() bool {
		n := 0
		for _, o := range store.List() {
			if o.(*corev1.ConfigMap).Data["done"] == "yes" {
				n++
			}
		}
		return n == 100
	})
}

// One leads; when it lets go the other does at once, and never both.
func election(w *world) error {
	var leading, most atomic.Int64
	order := make(chan string, 4)
	run := func(ctx context.Context, name string) {
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock:            &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Name: "elected", Namespace: ns}, Client: w.client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: name}},
			ReleaseOnCancel: true, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 500 * time.Millisecond,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) {
					most.Store(max(most.Load(), leading.Add(1)))
					order <- name
				},
				OnStoppedLeading: func() { leading.Add(-1) },
			},
		})
	}
	first, let := context.WithCancel(w)
	go run(first, "first")
	if name := <-order; name != "first" {
		return fmt.Errorf("%s leads", name)
	}
	go run(w, "second")
	time.Sleep(2 * time.Second)
	began := time.Now()
	let()
	select {
	case name := <-order:
		if took := time.Since(began); name != "second" || took > 10*time.Second || most.Load() != 1 {
			return fmt.Errorf("%s after %s, %d at once", name, took, most.Load())
		}
	case <-time.After(30 * time.Second):
		return fmt.Errorf("nobody leads")
	}
	lease, err := w.client.CoordinationV1().Leases(ns).Get(w, "elected", metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "second" || *lease.Spec.LeaseTransitions != 1 {
		return fmt.Errorf("%v %v", lease, err)
	}
	return nil
}

func execBy(socket bool) func(*world) error {
	return func(w *world) error {
		run := func(in string, tty bool, command ...string) (string, string, error) {
			options := &corev1.PodExecOptions{Command: command, Stdin: in != "", Stdout: true, Stderr: !tty, TTY: tty}
			url := w.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name("echo").SubResource("exec").VersionedParams(options, scheme.ParameterCodec).URL()
			executor, err := remotecommand.NewSPDYExecutor(w.config, "POST", url)
			if socket {
				executor, err = remotecommand.NewWebSocketExecutor(w.config, "GET", url.String())
			}
			if err != nil {
				return "", "", err
			}
			var out, errors bytes.Buffer
			streams := remotecommand.StreamOptions{Stdout: &out, Tty: tty}
			if !tty {
				streams.Stderr = &errors
			}
			if in != "" {
				streams.Stdin = strings.NewReader(in)
			}
			err = executor.StreamWithContext(w, streams)
			return out.String(), errors.String(), err
		}
		big := strings.Repeat("0123456789abcdef", 1<<16)
		if out, _, err := run(big, false, "cat"); err != nil || out != big {
			return fmt.Errorf("%d of %d bytes came back: %v", len(out), len(big), err)
		}
		out, told, err := run("", false, "sh", "-c", "echo out; echo told >&2; exit 9")
		if out != "out\n" || told != "told\n" || err == nil || !strings.Contains(err.Error(), "exit code 9") {
			return fmt.Errorf("%q %q %v", out, told, err)
		}
		if out, _, err := run("", true, "tty"); err != nil || !strings.HasPrefix(out, "/dev/pts/") {
			return fmt.Errorf("%q %v", out, err)
		}
		return nil
	}
}

func forwardBy(socket bool) func(*world) error {
	return func(w *world) error {
		url := w.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name("echo").SubResource("portforward").URL()
		transport, upgrader, err := spdy.RoundTripperFor(w.config)
		if err != nil {
			return err
		}
		dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", url)
		if socket {
			if dialer, err = portforward.NewSPDYOverWebsocketDialer(url, w.config); err != nil {
				return err
			}
		}
		ready, stop := make(chan struct{}), make(chan struct{})
		forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:1234"}, stop, ready, os.Stdout, os.Stderr)
		if err != nil {
			return err
		}
		over := make(chan error, 1)
		go func() { over <- forwarder.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-over:
			return fmt.Errorf("not ready: %w", err)
		}
		ports, err := forwarder.GetPorts()
		if err != nil {
			return err
		}
		for i := range 20 {
			connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
			if err != nil {
				return err
			}
			said, heard := fmt.Sprintf("number %d", i), make([]byte, 64)
			_ = connection.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := connection.Write([]byte(said)); err != nil {
				return err
			}
			n, err := connection.Read(heard)
			if err != nil || string(heard[:n]) != said {
				return fmt.Errorf("%q %v", heard[:n], err)
			}
			connection.Close()
		}
		close(stop)
		return <-over
	}
}

// What one applied it extracts, changes and applies again; what another has is a conflict.
func apply(w *world) error {
	all := w.client.CoreV1().ConfigMaps(ns)
	if _, err := all.Apply(w, applycore.ConfigMap("applied", ns).WithData(map[string]string{"a": "1", "b": "1"}), metav1.ApplyOptions{FieldManager: "one"}); err != nil {
		return err
	}
	now, err := all.Get(w, "applied", metav1.GetOptions{})
	if err != nil {
		return err
	}
	mine, err := applycore.ExtractConfigMap(now, "one")
	if err != nil || len(mine.Data) != 2 {
		return fmt.Errorf("%v %v", mine, err)
	}
	delete(mine.Data, "b")
	if now, err = all.Apply(w, mine, metav1.ApplyOptions{FieldManager: "one"}); err != nil || len(now.Data) != 1 {
		return fmt.Errorf("%v %v", now, err)
	}
	_, err = all.Apply(w, applycore.ConfigMap("applied", ns).WithData(map[string]string{"a": "2"}), metav1.ApplyOptions{FieldManager: "two"})
	if !errors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one"`) {
		return fmt.Errorf("%v", err)
	}
	return nil
}

// Discovery in one answer for all groups, and what kinds are called.
func mapping(w *world) error {
	mapper := restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(w.client.Discovery())), w.client.Discovery(), nil)
	for short, want := range map[string]string{"deploy": "deployments", "cm": "configmaps", "hpa": "horizontalpodautoscalers", "netpol": "networkpolicies"} {
		found, err := mapper.ResourceFor(schema.GroupVersionResource{Resource: short})
		if err != nil || found.Resource != want {
			return fmt.Errorf("%s is %v, %v", short, found, err)
		}
	}
	one := sets.New[string]()
	for _, s := range *w.seen.Load() {
		one.Insert(s)
	}
	if !w.asked("apidiscovery.k8s.io") || w.asked("/apis/apps/v1 ") {
		return fmt.Errorf("not in one answer: %v", one.UnsortedList())
	}
	return nil
}

// The same event again and again is a series.
func tell(w *world) error {
	ctx, stop := context.WithCancel(w)
	defer stop()
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: w.client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	pod, err := w.client.CoreV1().Pods(ns).Get(w, "echo", metav1.GetOptions{})
	if err != nil {
		return err
	}
	recorder := broadcaster.NewRecorder(scheme.Scheme, "example.com/teller")
	for range 5 {
		recorder.Eventf(pod, nil, corev1.EventTypeNormal, "Told", "Telling", "told again")
		time.Sleep(100 * time.Millisecond)
	}
	return w.until("a series of the event", func() bool {
		all, err := w.client.EventsV1().Events(ns).List(w, metav1.ListOptions{FieldSelector: "reason=Told"})
		return err == nil && len(all.Items) == 1 && all.Items[0].Regarding.Name == "echo" && all.Items[0].Series != nil && all.Items[0].Series.Count >= 2
	})
}
